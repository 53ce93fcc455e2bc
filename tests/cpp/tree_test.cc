// `tree`. Exact: invariants of its plans, the executor against the float64 reference on the same
// plan, bits over threads, the defined cases. (The dial on real heads: tests/python/test_tree.py.)
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/nodes.h"
#include "testing/instruction_sets.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

/// max_density keeps heads from being done as dense.
Call TreeCall(const Shape& shape, double tolerance, DType dtype = DType::kFloat32) {
  Call call(shape, dtype);
  call.options.method = Method::kTree;
  call.options.tolerance = tolerance;
  call.options.max_density = 0.9;
  return call;
}

/// Keys in groups far apart, so that logits are not all alike.
void FillGrouped(Random& random, Call& call) {
  call.FillNormal(random);
  const std::int64_t depth = call.shape.depth;
  call.key.ForEach([&](auto b, auto h, auto j, auto c) {
    call.key.set(b, h, j, c, call.key.at(b, h, j, c) + (c == j % 7 % depth ? 4.0 : 0.0));
  });
}

Call RandomTreeCall(Random& random) {
  Shape s;
  s.batch = random.Of<std::int64_t>({1, 2});
  s.key_heads = random.Of<std::int64_t>({1, 2});
  s.query_heads = s.key_heads * random.Of<std::int64_t>({1, 3});
  s.queries = random.Between(1, 90);
  s.keys = random.Between(64, 500);
  s.depth = random.Of<std::int64_t>({1, 3, 8, 16, 24, 64, 80});
  s.value_depth = random.Of<std::int64_t>({1, 5, 16, 64, 70});
  Call call = TreeCall(s, random.Of({0.05, 0.2, 0.5}),
                       random.Of({DType::kFloat32, DType::kFloat16, DType::kBFloat16}));
  FillGrouped(random, call);
  if (random.Chance(0.4)) call.key_padding_mask = RandomPadding(random, s.batch, s.keys);
  if (random.Chance(0.4)) call.query_padding_mask = RandomPadding(random, s.batch, s.queries);
  call.options.seed = static_cast<std::uint64_t>(random.Below(5));
  call.options.num_threads = static_cast<int>(random.Between(1, 2));
  return call;
}

/// Norm of the difference over the norm, over all valid rows; and the largest difference of lse.
struct Difference {
  double out = 0.0, lse = 0.0;
};
Difference Compare(const Call& call, const Result& result, const Exact& exact) {
  double error = 0.0;
  double size = 0.0;
  Difference difference;
  call.ForEachRow([&](auto b, auto h, auto i) {
    const std::size_t row = call.Row(b, h, i);
    for (std::int64_t c = 0; c < call.shape.value_depth; ++c) {
      const double expected = exact.out[row * static_cast<std::size_t>(call.shape.value_depth) +
                                        static_cast<std::size_t>(c)];
      const double got = result.out.at(b, h, i, c);
      error += (got - expected) * (got - expected);
      size += expected * expected;
    }
    const double lse = result.lse[row];
    if (lse != exact.lse[row]) {
      difference.lse = std::max(difference.lse, std::abs(lse - exact.lse[row]));
    }
  });
  difference.out = size > 0.0 ? std::sqrt(error / size) : std::sqrt(error);
  return difference;
}

Exact Dense(Call call) {
  const auto scale = call.options.scale;
  call.options = {};
  call.options.scale = scale;
  call.options.enable_gqa = call.shape.query_heads != call.shape.key_heads;
  return RunReference(call);
}

TEST(Tree, PlansCoverEveryValidPairOnce) {
  Random random(100);
  int with_blocks = 0;
  for (int n = 0; n < 120 && !::testing::Test::HasFatalFailure(); ++n) {
    const Call call = RandomTreeCall(random);
    SCOPED_TRACE(::testing::Message() << "call " << n << ": " << call);
    const Plan made = plan(call.arguments(), call.options);
    ASSERT_EQ(made.method, Method::kTree);
    for (std::int64_t b = 0; b < call.shape.batch; ++b) {
      for (std::int64_t h = 0; h < call.shape.query_heads; ++h) {
        const HeadPlan& head = made.head(0, b, h);
        const KeyTree& tree = made.key_tree(b, call.KeyHead(h));
        ASSERT_FALSE(head.non_finite);
        for (const Node& node : tree.nodes) {
          std::int32_t at = node.begin;
          for (std::int32_t k = 0; k < node.child_count; ++k) {
            const Node& child = tree.nodes[static_cast<std::size_t>(node.first_child) +
                                           static_cast<std::size_t>(k)];
            ASSERT_EQ(child.begin, at);
            at = child.end;
          }
          ASSERT_EQ(at, node.child_count > 0 ? node.end : node.begin);
          ASSERT_TRUE(node.child_count > 0 || node.end - node.begin <= 8);
        }
        if (head.blocks.empty()) continue;
        ++with_blocks;
        std::vector<std::int32_t> keys = tree.key_order;
        std::sort(keys.begin(), keys.end());
        std::vector<std::int32_t> valid;
        for (std::int32_t j = 0; j < call.shape.keys; ++j) {
          if (call.IsValidKey(b, j)) valid.push_back(j);
        }
        ASSERT_EQ(keys, valid);
        std::vector<int> met(static_cast<std::size_t>(call.shape.queries), 0);
        for (const QueryBlock& block : head.blocks) {
          ASSERT_LE(block.end - block.begin, kernels::kTreeRows);
          for (std::int32_t i = block.begin; i < block.end; ++i) {
            ++met[static_cast<std::size_t>(head.query_order[static_cast<std::size_t>(i)])];
          }
          std::vector<int> covered(keys.size(), 0);
          const auto cover = [&](std::int32_t begin, std::int32_t end) {
            for (std::int32_t j = begin; j < end; ++j) ++covered[static_cast<std::size_t>(j)];
          };
          ASSERT_EQ(head.ranges[block.first_range].begin, 0);
          ASSERT_GE(head.ranges[block.first_range].end, tree.sinks);
          for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
            ASSERT_FALSE(head.ranges[r].partial);
            cover(head.ranges[r].begin, head.ranges[r].end);
          }
          for (std::uint32_t r = block.first_node; r < block.last_node; ++r) {
            const Node& node = tree.nodes[static_cast<std::size_t>(head.nodes[r])];
            cover(node.begin, node.end);
          }
          ASSERT_TRUE(std::all_of(covered.begin(), covered.end(), [](int x) { return x == 1; }));
        }
        for (std::int64_t i = 0; i < call.shape.queries; ++i) {
          ASSERT_EQ(met[static_cast<std::size_t>(i)], call.IsValidQuery(b, i) ? 1 : 0);
        }
      }
    }
  }
  EXPECT_GT(with_blocks, 100);
}

TEST(Tree, ExecutorsAgreeOnAPlan) {
  Random random(101);
  for (int n = 0; n < 60 && !::testing::Test::HasFatalFailure(); ++n) {
    const Call call = RandomTreeCall(random);
    SCOPED_TRACE(::testing::Message() << "call " << n << ": " << call);
    const Plan made = plan(call.arguments(), call.options);
    const Exact exact = RunReference(call, &made);
    const double rounding = call.query.dtype() == DType::kFloat32   ? 2e-5
                            : call.query.dtype() == DType::kFloat16 ? 1e-3
                                                                    : 5e-3;
    const auto expect = [&](const Result& result) {
      const Difference difference = Compare(call, result, exact);
      ASSERT_LE(difference.out, rounding);
      ASSERT_LE(difference.lse, 1e-4);
    };
    ForEachInstructionSet([&] { expect(Attend(call, &made, Layout::kGaps)); });
    const Result streamed = Attend(call);
    expect(streamed);
    for (std::size_t h = 0; h < streamed.statistics.heads.size(); ++h) {
      const auto b = static_cast<std::int64_t>(h) / call.shape.query_heads;
      const auto head = static_cast<std::int64_t>(h) % call.shape.query_heads;
      ASSERT_NEAR(streamed.statistics.heads[h].density, made.density(b, head), 1e-12);
    }
  }
}

TEST(Tree, SameBitsForAnyNumberOfThreadsAndInEveryBatchEntry) {
  Random random(102);
  Call call = TreeCall({2, 2, 1, 700, 900, 32, 24}, 0.3);
  FillGrouped(random, call);
  call.query.ForEach([&](auto b, auto h, auto i, auto c) {
    if (b == 1) call.query.set(b, h, i, c, call.query.at(0, h, i, c));
  });
  call.key.ForEach([&](auto b, auto h, auto i, auto c) {
    if (b == 1) call.key.set(b, h, i, c, call.key.at(0, h, i, c));
  });
  call.value.ForEach([&](auto b, auto h, auto i, auto c) {
    if (b == 1) call.value.set(b, h, i, c, call.value.at(0, h, i, c));
  });
  call.options.num_threads = 1;
  const Result one = Attend(call);
  for (const int threads : {2, 3}) {
    call.options.num_threads = threads;
    ASSERT_TRUE(Attend(call).SameBits(one)) << threads;
  }
  const std::size_t half = one.lse.size() / 2;
  ASSERT_TRUE(std::equal(one.lse.begin(), one.lse.begin() + static_cast<std::ptrdiff_t>(half),
                         one.lse.begin() + static_cast<std::ptrdiff_t>(half)));
}

TEST(Tree, ToleranceZeroIsDense) {
  Random random(103);
  Call call = TreeCall({1, 2, 2, 150, 300, 16, 8}, 0.0);
  call.options.max_density.reset();
  FillGrouped(random, call);
  const Result result = Attend(call);
  const Difference difference = Compare(call, result, Dense(call));
  EXPECT_LE(difference.out, 1e-6);
  EXPECT_LE(difference.lse, 1e-5);
  EXPECT_TRUE(result.statistics.heads[0].dense);
}

/// Heads on which a mean, a covariance or a sum is 0, or one key is everything.
TEST(Tree, DefinedCases) {
  struct Case {
    const char* name;
    std::function<void(Call&)> change;
  };
  const auto each = [](Tensor& tensor, const std::function<double(std::int64_t, std::int64_t)>& f) {
    tensor.ForEach([&](auto b, auto h, auto i, auto c) { tensor.set(b, h, i, c, f(i, c)); });
  };
  const std::vector<Case> cases{
      {"constant heads",
       [&](Call& c) {
         each(c.query, [](auto, auto d) { return 0.1 * static_cast<double>(d); });
         each(c.key, [](auto, auto) { return 0.5; });
         each(c.value, [](auto, auto d) { return 1.0 + static_cast<double>(d); });
       }},
      {"identical keys", [&](Call& c) { each(c.key, [](auto, auto) { return -1.5; }); }},
      {"zero keys", [&](Call& c) { each(c.key, [](auto, auto) { return 0.0; }); }},
      {"zero queries", [&](Call& c) { each(c.query, [](auto, auto) { return 0.0; }); }},
      {"equal values", [&](Call& c) { each(c.value, [](auto, auto) { return 3.0; }); }},
      {"zero values", [&](Call& c) { each(c.value, [](auto, auto) { return 0.0; }); }},
      {"a dominating key",
       [&](Call& c) {
         each(c.query, [](auto, auto) { return 1.0; });
         for (std::int64_t d = 0; d < c.shape.depth; ++d) c.key.set(0, 0, 77, d, 10.0);
       }},
      // More keys than the sinks hold; out can't tell them from the others, lse must.
      {"64 keys at logit 6 with equal values",
       [&](Call& c) {
         each(c.query, [](auto, auto d) { return d == 0 ? 1.0 : 0.0; });
         c.options.scale = 1.0;
         for (std::int64_t j = 0; j < c.shape.keys; ++j) {
           c.key.set(0, 0, j, 0, j % 8 == 3 ? 6.0 : 0.0);
         }
         each(c.value, [](auto, auto d) { return static_cast<double>(d % 3); });
       }},
      {"huge and tiny elements",
       [&](Call& c) {
         each(c.query, [&](auto i, auto d) { return 1e18 * c.query.at(0, 0, i, d); });
         each(c.key, [&](auto j, auto d) { return 1e-18 * c.key.at(0, 0, j, d); });
       }},
  };
  for (const double tolerance : {0.05, 0.2}) {
    for (const Case& one : cases) {
      for (const bool capped : {false, true}) {
        SCOPED_TRACE(::testing::Message() << one.name << ", tolerance " << tolerance);
        Random random(104);
        Call call = TreeCall({1, 1, 1, 256, 512, 24, 6}, tolerance);
        FillGrouped(random, call);
        if (!capped) call.options.max_density.reset();
        one.change(call);
        const Result result = Attend(call);
        const Difference difference = Compare(call, result, Dense(call));
        // Where the cap binds, the error to expect is said.
        const Statistics::Head& head = result.statistics.heads[0];
        EXPECT_LE(difference.out, 1.5 * std::max(tolerance, head.expected_error));
        EXPECT_LE(difference.lse, 3.0 * tolerance);
        EXPECT_FALSE(head.non_finite);
      }
    }
  }
}

TEST(Tree, FewRows) {
  Random random(105);
  for (const std::int64_t queries : {1, 2, 15, 17}) {
    for (const std::int64_t keys : {0, 1, 16, 17, 63, 64, 65, 81}) {
      SCOPED_TRACE(::testing::Message() << queries << " queries, " << keys << " keys");
      Call call = TreeCall({1, 1, 1, queries, keys, 40, 7}, 0.5);
      call.FillNormal(random);
      const Result result = Attend(call);
      if (keys == 0) {
        EXPECT_EQ(result.lse[0], -kInfinity);
        EXPECT_EQ(result.out.at(0, 0, 0, 0), 0.0);
      } else {
        EXPECT_LE(Compare(call, result, Dense(call)).out, 0.75);
      }
    }
  }
}

TEST(Tree, NotANumberSpoilsItsOwnHeadAndPaddingHidesIt) {
  Random random(106);
  Call call = TreeCall({1, 4, 2, 100, 200, 16, 8}, 0.3);
  FillGrouped(random, call);
  call.query.set(0, 1, 5, 3, kNaN);
  const Result spoiled = Attend(call);
  for (std::int64_t h = 0; h < 4; ++h) {
    EXPECT_EQ(spoiled.statistics.heads[static_cast<std::size_t>(h)].non_finite, h == 1);
    EXPECT_EQ(std::isnan(spoiled.out.at(0, h, 50, 2)), h == 1);
  }
  call.query.set(0, 1, 5, 3, 0.0);
  call.key.set(0, 1, 9, 0, kInfinity);
  const Result key = Attend(call);
  for (std::int64_t h = 0; h < 4; ++h) EXPECT_EQ(std::isnan(key.out.at(0, h, 0, 0)), h >= 2);
  call.key_padding_mask = Tensor(DType::kBool, {1, 1, 1, 200});
  for (std::int64_t j = 0; j < 200; ++j) call.key_padding_mask->set(0, 0, 0, j, j != 9 ? 1.0 : 0.0);
  const Result padded = Attend(call);
  for (std::int64_t h = 0; h < 4; ++h) EXPECT_FALSE(std::isnan(padded.out.at(0, h, 0, 0)));
  // A value that is not a number passes on, as in dense.
  call.value.set(0, 0, 30, 1, kNaN);
  EXPECT_TRUE(std::isnan(Attend(call).out.at(0, 0, 3, 1)));
}

TEST(Tree, DensityIsCappedAndTheErrorToExpectIsSaid) {
  Random random(107);
  Call call = TreeCall({1, 1, 1, 600, 800, 32, 16}, 0.01);
  FillGrouped(random, call);
  call.options.max_density = 0.15;
  const Result result = Attend(call);
  const Statistics::Head& head = result.statistics.heads[0];
  EXPECT_FALSE(head.dense);
  EXPECT_LE(head.density, 0.15 * 1.25);
  EXPECT_GT(head.expected_error, 0.01);
}

TEST(Tree, HeadsOfAGroupWithNormsTenfoldApart) {
  Random random(108);
  Call call = TreeCall({1, 3, 1, 400, 600, 32, 16}, 0.2);
  FillGrouped(random, call);
  call.options.max_density.reset();
  call.query.ForEach([&](auto b, auto h, auto i, auto c) {
    call.query.set(b, h, i, c, call.query.at(b, h, i, c) * (h == 0 ? 0.3 : h == 1 ? 1.0 : 3.0));
  });
  EXPECT_LE(Compare(call, Attend(call), Dense(call)).out, 0.2);
}

}  // namespace
}  // namespace smyrf::testing
