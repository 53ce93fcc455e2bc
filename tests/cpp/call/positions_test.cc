// Exact: calls over some of a sequence's queries and keys are the parts of the whole call, forward
// and backward; hostile: positions that there can't be.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "run/problem.h"
#include "simd/mask.h"
#include "smyrf/error.h"
#include "testing/bounds.h"
#include "testing/gradients.h"
#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

/// Rows [begin, end) of dimension `along`, where that has more than one.
Tensor Slice(const Tensor& tensor, std::size_t along, std::int64_t begin, std::int64_t end) {
  Tensor::Index shape = tensor.shape();
  if (shape[along] == 1) return tensor;
  shape[along] = end - begin;
  Tensor part(tensor.dtype(), shape);
  part.ForEach([&](auto... at) {
    Tensor::Index from{at...};
    from[along] += begin;
    part.set(at..., tensor.at(from[0], from[1], from[2], from[3]));
  });
  return part;
}

struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// The part of a call with positions over some of its queries and keys.
Call PartOf(const Call& whole, Range queries, Range keys) {
  Call part = whole;
  part.shape.queries = queries.end - queries.begin;
  part.shape.keys = keys.end - keys.begin;
  part.query = Slice(whole.query, 2, queries.begin, queries.end);
  part.key = Slice(whole.key, 2, keys.begin, keys.end);
  part.value = Slice(whole.value, 2, keys.begin, keys.end);
  if (whole.attn_mask) {
    part.attn_mask =
        Slice(Slice(*whole.attn_mask, 2, queries.begin, queries.end), 3, keys.begin, keys.end);
  }
  if (whole.key_padding_mask) {
    part.key_padding_mask = Slice(*whole.key_padding_mask, 3, keys.begin, keys.end);
  }
  if (whole.query_padding_mask) {
    part.query_padding_mask = Slice(*whole.query_padding_mask, 3, queries.begin, queries.end);
  }
  const Positions first = whole.options.positions.value_or(Positions{});
  part.options.positions =
      Positions{first.first_query + queries.begin, first.first_key + keys.begin};
  return part;
}

/// [0, count) in up to three parts, none empty.
std::vector<Range> Cut(Random& random, std::int64_t count) {
  std::vector<Range> parts{{0, count}};
  for (int n = 0; n < 2; ++n) {
    Range& last = parts.back();
    if (last.end - last.begin < 2) break;
    const std::int64_t at = last.begin + random.Between(1, last.end - last.begin - 1);
    const std::int64_t end = std::exchange(last.end, at);
    parts.push_back({at, end});
  }
  return parts;
}

Positions RandomPositions(Random& random, const Shape& s) {
  const std::int64_t base = random.Of<std::int64_t>({0, 5, 70000, kMaxRows - 1000});
  // Most queries meet the keys; now and then all stand before or behind them.
  return {base + random.Below(s.keys + 20), base + random.Below(s.queries + 20)};
}

Call RandomWhole(Random& random) {
  Call call = RandomDenseCall(random, 1.5e5);
  call.options.method = Method::kDense;
  call.options.positions = RandomPositions(random, call.shape);
  if (random.Chance(0.5)) call.options.is_causal = true;
  if (random.Chance(0.3)) call.options.window = Window{random.Below(60), random.Below(9) - 1};
  if (random.Chance(0.4)) {
    call.options.dropout_p = 0.4;
    call.options.seed = static_cast<std::uint64_t>(random.Below(100));
  }
  return call;
}

TEST(Positions, MaskPairsAsTheirPositionsSay) {
  Random random(410);
  for (int n = 0; n < 300; ++n) {
    Call call({1, 1, 1, random.Between(1, 40), random.Between(1, 40)});
    call.options.positions = RandomPositions(random, call.shape);
    call.options.is_causal = random.Chance(0.5);
    const auto side = [&] { return random.Of<std::int64_t>({-1, 0, 3, 50, 1LL << 62}); };
    if (random.Chance(0.7)) call.options.window = Window{side(), side()};
    const Mask mask(call.shape.queries, call.shape.keys, call.options.is_causal,
                    call.options.window, {}, call.options.positions);
    for (std::int64_t i = 0; i < call.shape.queries; ++i) {
      for (std::int64_t j = 0; j < call.shape.keys; ++j) {
        ASSERT_EQ(mask.Bias(0, 0, i, j) == 0.0F, call.Allowed(0, 0, i, j)) << call << i << " " << j;
      }
    }
  }
}

TEST(Positions, PartsOfQueriesAndKeysMergeToTheWhole) {
  Random random(411);
  for (int n = 0; n < 60 && !::testing::Test::HasFatalFailure(); ++n) {
    SCOPED_TRACE(n);
    const Call whole = RandomWhole(random);
    const Exact exact = RunReference(whole);
    ASSERT_TRUE(Close(whole, Attend(whole), exact, 0.0));
    const std::vector<Range> shards = Cut(random, whole.shape.keys);
    for (const Range queries : Cut(random, whole.shape.queries)) {
      Result merged = Attend(PartOf(whole, queries, shards[0]));
      for (std::size_t shard = 1; shard < shards.size(); ++shard) {
        const Result part = Attend(PartOf(whole, queries, shards[shard]));
        const std::initializer_list<std::int64_t> rows{whole.shape.batch, whole.shape.query_heads,
                                                       queries.end - queries.begin};
        merge(merged.out.mutable_view(), Contiguous<void>(merged.lse.data(), DType::kFloat32, rows),
              part.out.view(), Contiguous<const void>(part.lse.data(), DType::kFloat32, rows));
      }
      // The exact rows of this chunk.
      const Call chunk = PartOf(whole, queries, {0, whole.shape.keys});
      Exact expected;
      const auto dv = static_cast<std::size_t>(whole.shape.value_depth);
      chunk.ForEachRow([&](auto b, auto h, auto i) {
        const std::size_t row = whole.Row(b, h, queries.begin + i);
        expected.lse.push_back(exact.lse[row]);
        expected.out.insert(expected.out.end(),
                            exact.out.begin() + static_cast<std::ptrdiff_t>(row * dv),
                            exact.out.begin() + static_cast<std::ptrdiff_t>((row + 1) * dv));
      });
      ASSERT_TRUE(Close(chunk, Attend(chunk), expected, 0.0));
      if (whole.query.dtype() != DType::kFloat32) continue;  // each part rounds out
      ASSERT_TRUE(Close(chunk, merged, expected, 3.0));
    }
  }
}

TEST(Positions, GradientsOfPartsAddUpToTheWholes) {
  Random random(412);
  for (int n = 0; n < 30 && !::testing::Test::HasFatalFailure(); ++n) {
    SCOPED_TRACE(n);
    Call whole = RandomWhole(random);
    if (whole.query.dtype() != DType::kFloat32) continue;  // each part rounds its gradients
    const Upstream upstream = RandomUpstream(random, whole, random.Chance(0.5));
    const Result result = Attend(whole);
    GradientTensors sum(whole);
    for (Tensor* tensor : {&sum.query, &sum.key, &sum.value}) {
      tensor->ForEach([&](auto... at) { tensor->set(at..., 0.0); });
    }
    const auto add = [](Tensor& to, const Tensor& part, std::int64_t begin) {
      part.ForEach([&](auto b, auto h, auto i, auto c) {
        to.set(b, h, begin + i, c, to.at(b, h, begin + i, c) + part.at(b, h, i, c));
      });
    };
    const std::vector<Range> shards = Cut(random, whole.shape.keys);
    for (const Range queries : Cut(random, whole.shape.queries)) {
      Upstream part_upstream{Slice(upstream.out, 2, queries.begin, queries.end), {}};
      Result part_result{Slice(result.out, 2, queries.begin, queries.end), {}, {}};
      PartOf(whole, queries, {0, whole.shape.keys}).ForEachRow([&](auto b, auto h, auto i) {
        const std::size_t row = whole.Row(b, h, queries.begin + i);
        part_result.lse.push_back(result.lse[row]);
        if (!upstream.lse.empty()) part_upstream.lse.push_back(upstream.lse[row]);
      });
      for (const Range keys : shards) {
        // With out and lse of the whole rows, a shard gives its part of the whole's gradients.
        const GradientTensors part =
            Backward(PartOf(whole, queries, keys), part_result, part_upstream);
        add(sum.query, part.query, queries.begin);
        add(sum.key, part.key, keys.begin);
        add(sum.value, part.value, keys.begin);
      }
    }
    ASSERT_TRUE(CloseGradients(whole, sum, ReferenceBackward(whole, upstream), upstream)) << whole;
  }
}

TEST(Positions, ThoseOfTheDefaultChangeNoBit) {
  Random random(413);
  for (const Method method : {Method::kDense, Method::kTree}) {
    Call call({1, 2, 1, 300, 500, 16, 16});
    call.FillNormal(random);
    call.options.method = method;
    if (method == Method::kTree) call.options.max_density = 0.4;
    if (method == Method::kDense) call.options.window = Window{40, 3};
    const Result result = Attend(call);
    for (const Positions positions : {Positions{200, 0}, Positions{1234200, 1234000}}) {
      call.options.positions = positions;
      EXPECT_TRUE(Attend(call).SameBits(result));
    }
  }
}

TEST(Positions, TreeFindsAQuerysOwnKey) {
  // Each query looks at the key at its position and at no other: which no summary tells.
  Random random(414);
  Call call({1, 1, 1, 600, 1500, 32, 8});
  call.FillNormal(random);
  constexpr std::int64_t kFirst = 700;
  for (std::int64_t i = 0; i < 600; ++i) {
    for (std::int64_t c = 0; c < 32; ++c) {
      call.query.set(0, 0, i, c, 1.5 * call.key.at(0, 0, kFirst + i, c));
    }
  }
  call.options.method = Method::kTree;
  call.options.max_density = 0.2;
  const auto density = [&](const Positions& positions) {
    call.options.positions = positions;
    return Attend(call).statistics.heads[0];
  };
  const Statistics::Head right = density({kFirst, 0});
  const Statistics::Head shifted = density({kFirst + 9000, 9000});
  const Statistics::Head wrong = density({kFirst + 20, 0});
  EXPECT_EQ(right.expected_error, shifted.expected_error);
  EXPECT_LT(right.expected_error, 0.5 * wrong.expected_error);
}

TEST(Positions, OfLshDecideWhatDropoutDrops) {
  Random random(415);
  for (int n = 0; n < 20 && !::testing::Test::HasFatalFailure(); ++n) {
    Call call = RandomLshCall(random, 2e5);
    call.options.dropout_p = 0.3;
    const Result without = Attend(call);
    call.options.positions = Positions{3, 0};
    const PlanParts made = PlanOf(call);
    ASSERT_TRUE(Close(call, Attend(call), RunReference(call, &made), 6.0));
    ASSERT_TRUE(Attend(call).SameBits(Attend(call, &made)));
    ASSERT_EQ(Attend(call).lse, without.lse);
  }
}

TEST(Positions, APlanKeepsThem) {
  Random random(416);
  Call call({1, 1, 1, 20, 30, 8, 8});
  call.FillNormal(random);
  call.options.is_causal = true;
  call.options.positions = Positions{15, 4};
  const Result result = Attend(call);
  const PlanParts made = PlanOf(call);
  EXPECT_EQ(made.positions, (Positions{15, 4}));
  EXPECT_TRUE(Attend(call, &made).SameBits(result));
  call.options.positions.reset();
  EXPECT_TRUE(Attend(call, &made).SameBits(result));
  EXPECT_FALSE(Attend(call).SameBits(result));
  const auto refused = [&](const PlanParts& plan) {
    try {
      Attend(call, &plan);
      return std::string("taken");
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  const PlanParts without = PlanOf(call);
  for (const Positions positions : {Positions{15, 5}, Positions{14, 4}, Positions{}}) {
    call.options.positions = positions;
    EXPECT_EQ(refused(made),
              "positions: differs from the plan's, which decides; leave it out or make a new plan");
    EXPECT_EQ(refused(without), refused(made));
  }
}

TEST(Positions, ThatCanNotBeAreRefused) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    Call call({1, 1, 1, 5, 3, 2, 2});
    call.options.method = method;
    for (const std::int64_t first : {std::int64_t{-1}, -kMost - 1, kMost, kMaxRows - 2}) {
      for (const bool of_query : {true, false}) {
        call.options.positions = of_query ? Positions{first, 0} : Positions{0, first};
        try {
          Attend(call);
          ADD_FAILURE() << first;
        } catch (const Error& error) {
          EXPECT_EQ(error.kind(), ErrorKind::kValue);
          const std::string begin =
              "positions: got " + std::string(of_query ? "first_query = " : "first_key = ");
          EXPECT_EQ(std::string(error.what()).rfind(begin + std::to_string(first), 0), 0U)
              << error.what();
        }
      }
    }
    call.options.positions = Positions{kMaxRows - 5, kMaxRows - 3};
    EXPECT_NO_THROW(Attend(call));
  }
}

TEST(Positions, QueriesThatStandBeforeAllKeysSeeNothing) {
  Random random(417);
  for (const std::int64_t queries : {1, 40}) {
    Call call({1, 1, 1, queries, 5000, 8, 8});
    call.FillNormal(random);
    call.options.is_causal = true;
    call.options.window = Window{std::numeric_limits<std::int64_t>::max(), 5};
    call.options.positions = Positions{0, kMaxRows - 5000};
    const Result result = Attend(call);
    for (const float lse : result.lse) EXPECT_EQ(lse, -std::numeric_limits<float>::infinity());
    result.out.ForEach([&](auto... at) { EXPECT_EQ(result.out.at(at...), 0.0); });
  }
}

}  // namespace
}  // namespace smyrf::testing
