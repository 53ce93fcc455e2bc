// Exact: the invariants of an `lsh` plan, and the asymmetric hash behind it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "base/random.h"
#include "testing/bounds.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

bool Same(const HeadPlan& a, const HeadPlan& b) {
  return a.query_order == b.query_order && a.key_order == b.key_order && a.dense == b.dense &&
         a.non_finite == b.non_finite && a.blocks.size() == b.blocks.size();
}

bool Same(const PlanParts& a, const PlanParts& b) {
  return a.heads.size() == b.heads.size() &&
         std::equal(a.heads.begin(), a.heads.end(), b.heads.begin(),
                    [](const HeadPlan& x, const HeadPlan& y) { return Same(x, y); });
}

/// Ranges follow each other from 0 to `count` and their sizes differ by at most one.
template <class Range>
void ExpectBalanced(std::span<const Range> ranges, std::size_t count) {
  std::int32_t after = 0;
  std::int32_t smallest = ranges.front().end - ranges.front().begin;
  std::int32_t largest = smallest;
  for (const Range& range : ranges) {
    ASSERT_EQ(range.begin, after);
    after = range.end;
    smallest = std::min(smallest, range.end - range.begin);
    largest = std::max(largest, range.end - range.begin);
  }
  ASSERT_EQ(static_cast<std::size_t>(after), count);
  ASSERT_LE(largest - smallest, 1);
  ASSERT_GE(smallest, 1);
}

void ExpectPartition(const HeadPlan& head, std::int64_t clusters,
                     const std::vector<std::int32_t>& queries,
                     const std::vector<std::int32_t>& keys) {
  ASSERT_EQ(Sorted(head.query_order), queries);  // each valid row once, no other
  ASSERT_EQ(Sorted(head.key_order), keys);
  ASSERT_EQ(head.blocks.size(), static_cast<std::size_t>(clusters));
  ASSERT_EQ(head.ranges.size(), static_cast<std::size_t>(clusters));
  ExpectBalanced(std::span(head.blocks), queries.size());
  ExpectBalanced(std::span(head.ranges), keys.size());
  for (std::size_t c = 0; c < head.blocks.size(); ++c) {  // equal ranks paired
    ASSERT_EQ(head.blocks[c].first_range, c);
    ASSERT_EQ(head.blocks[c].last_range, c + 1);
  }
}

TEST(LshPlan, EveryRoundPartitionsTheValidRowsIntoBalancedClusters) {
  Random random(30);
  for (int n = 0; n < 300 && !::testing::Test::HasFatalFailure(); ++n) {
    const Call call = RandomLshCall(random, 3e5);
    SCOPED_TRACE(::testing::Message() << "call " << n << ": " << call);
    const PlanParts made = PlanOf(call);
    ASSERT_EQ(made.method, Method::kLsh);
    ASSERT_EQ(made.rounds(), *call.options.n_hashes);
    for (std::int64_t b = 0; b < call.shape.batch; ++b) {
      const std::vector<std::int32_t> queries = ValidRows(call, b, true);
      const std::vector<std::int32_t> keys = ValidRows(call, b, false);
      const double wanted = std::round(static_cast<double>(keys.size()) /
                                       static_cast<double>(*call.options.cluster_size));
      const std::int64_t clusters =
          std::min(std::max<std::int64_t>(1, static_cast<std::int64_t>(wanted)),
                   static_cast<std::int64_t>(queries.size()));
      for (std::int64_t h = 0; h < call.shape.query_heads; ++h) {
        double pairs = 0.0;
        for (std::int64_t round = 0; round < made.rounds(); ++round) {
          const HeadPlan& head = made.head(round, b, h);
          ASSERT_FALSE(head.non_finite);
          if (queries.empty() || keys.empty()) {
            ASSERT_TRUE(head.blocks.empty());
            continue;
          }
          ASSERT_EQ(head.dense, clusters == 1);
          if (clusters == 1 && round > 0) {  // dense attention is done once
            ASSERT_TRUE(head.blocks.empty());
            continue;
          }
          ExpectPartition(head, clusters, queries, keys);
          for (std::size_t c = 0; c < head.blocks.size(); ++c) {
            pairs += static_cast<double>(head.blocks[c].end - head.blocks[c].begin) *
                     static_cast<double>(head.ranges[c].end - head.ranges[c].begin);
          }
        }
        const double all = static_cast<double>(queries.size()) * static_cast<double>(keys.size());
        ASSERT_DOUBLE_EQ(DensityOf(made, b, h), all > 0.0 ? pairs / all : 1.0);
      }
    }
  }
}

/// The paper's transforms of one head in double precision, and the directions of the plan.
struct Hash {
  std::int64_t depth;
  std::vector<std::vector<double>> queries, keys;  ///< F(q) and G(k): D + 2 numbers each
  double bound = 0.0;                              ///< M^2
  double smallest = 0.0;                           ///< of the squared norms that M^2 exceeds

  Hash(const Call& call, std::int64_t b, std::int64_t h) : depth(call.shape.depth) {
    const auto rows = [&](const Tensor& tensor, std::int64_t head) {
      std::vector<std::vector<double>> result;
      for (std::int64_t i = 0; i < tensor.shape()[2]; ++i) {
        result.emplace_back();
        for (std::int64_t c = 0; c < depth; ++c) result.back().push_back(tensor.at(b, head, i, c));
      }
      return result;
    };
    queries = rows(call.query, h);
    keys = rows(call.key, call.KeyHead(h));
    const auto largest = [&](const std::vector<std::vector<double>>& all) {
      double result = 0.0;
      for (const auto& x : all) result = std::max(result, Dot(x, x));
      return result;
    };
    bound = largest(queries) + largest(keys);
    for (auto& q : queries) {
      const double slack = std::sqrt(bound - Dot(q, q));
      q.insert(q.end(), {0.0, slack});
    }
    for (auto& k : keys) {
      const double slack = std::sqrt(bound - Dot(k, k));
      k.insert(k.end(), {slack, 0.0});
    }
  }

  static double Dot(const std::vector<double>& a, const std::vector<double>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  }
  std::vector<double> Direction(std::uint64_t seed, std::int64_t round) const {
    NormalStream normal(seed, static_cast<std::uint64_t>(round));
    std::vector<double> direction(static_cast<std::size_t>(depth + 2));
    for (double& number : direction) number = static_cast<float>(normal.Next());
    return direction;
  }
  /// How far a float32 projection may be off. Product: D multiply-adds over |x| |direction|. Slack
  /// sqrt(M^2 - |x|^2): its argument is off by e = Growth(D + 2) u 2 M^2, itself then by at most
  /// min(sqrt(e), e / slack), and by 2 u of its own.
  double Error(const std::vector<double>& x, const std::vector<double>& direction) const {
    const double u = UnitRoundoff(DType::kFloat32);
    const double growth = Growth(static_cast<double>(depth) + 2.0) * u;
    const double slack =
        x[static_cast<std::size_t>(depth)] + x[static_cast<std::size_t>(depth) + 1];
    const double argument = 2.0 * growth * bound;
    const double root = std::min(std::sqrt(argument), argument / std::max(slack, 1e-300));
    const double weight = std::max(std::abs(direction[static_cast<std::size_t>(depth)]),
                                   std::abs(direction[static_cast<std::size_t>(depth) + 1]));
    return growth * std::sqrt(bound * Dot(direction, direction)) + weight * (root + 2 * u * slack);
  }
};

/// Ascending by projection, up to the rounding of both neighbours' projections.
void ExpectOrder(const Hash& hash, const std::vector<std::vector<double>>& rows,
                 const std::vector<std::int32_t>& order, const std::vector<double>& direction) {
  double highest = -kInfinity;
  double error = 0.0;
  for (const std::int32_t row : order) {
    const std::vector<double>& x = rows[static_cast<std::size_t>(row)];
    const double projection = Hash::Dot(x, direction);
    const double own = hash.Error(x, direction);
    ASSERT_GE(projection, highest - error - own) << "row " << row;
    if (projection > highest) {
      highest = projection;
      error = own;
    }
  }
}

void ExpectHashOrders(const Call& call) {
  SCOPED_TRACE(::testing::Message() << call);
  const PlanParts made = PlanOf(call);
  for (std::int64_t b = 0; b < call.shape.batch; ++b) {
    for (std::int64_t h = 0; h < call.shape.query_heads; ++h) {
      const Hash hash(call, b, h);
      // What makes the nearest neighbour the key with the largest inner product:
      // |F(q) - G(k)|^2 = 2 (M^2 - q.k), and all F(q) and G(k) have length M.
      for (const auto& q : hash.queries) {
        ASSERT_NEAR(Hash::Dot(q, q) / hash.bound, 1.0, 1e-12);
        for (const auto& k : hash.keys) {
          const double inner =
              std::inner_product(q.begin(), q.begin() + call.shape.depth, k.begin(), 0.0);
          double distance = 0.0;
          for (std::size_t c = 0; c < q.size(); ++c) distance += (q[c] - k[c]) * (q[c] - k[c]);
          ASSERT_NEAR(distance / hash.bound, 2.0 * (1.0 - inner / hash.bound), 1e-12);
        }
      }
      for (std::int64_t round = 0; round < made.rounds(); ++round) {
        const HeadPlan& head = made.head(round, b, h);
        if (head.dense) continue;
        const std::vector<double> direction = hash.Direction(call.options.seed, round);
        ExpectOrder(hash, hash.queries, head.query_order, direction);
        ExpectOrder(hash, hash.keys, head.key_order, direction);
      }
    }
  }
}

Call LshCall(Random& random, const Shape& shape, DType dtype = DType::kFloat32) {
  Call call(shape, dtype);
  call.FillNormal(random);
  call.options.method = Method::kLsh;
  call.options.n_hashes = 3;
  call.options.cluster_size = 4;
  call.options.seed = 17;
  return call;
}

TEST(LshPlan, OrdersAreProjectionsOfTheAsymmetricTransform) {
  Random random(31);
  for (const std::int64_t depth : {1, 2, 8, 33, 128}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      Call call = LshCall(random, {2, 4, 2, 50, 70, depth, 3}, dtype);
      // Norms that differ, so that the slack coordinates matter.
      call.key.ForEach([&](auto b, auto h, auto i, auto c) {
        call.key.set(b, h, i, c, call.key.at(b, h, i, c) * (0.1 + 0.05 * static_cast<double>(i)));
      });
      ExpectHashOrders(call);
    }
  }
}

TEST(LshPlan, OrdersHoldForHugeAndTinyElements) {
  Random random(32);
  for (const double size : {1e-37, 1e-30, 1e30, 1e37}) {
    Call call = LshCall(random, {1, 2, 1, 40, 60, 16, 3});
    call.query.FillNormal(random, size);
    call.key.FillNormal(random, 0.3 * size);
    ExpectHashOrders(call);
  }
  // Queries that are far smaller than keys, and the other way round.
  for (const double ratio : {1e-25, 1e25}) {
    Call call = LshCall(random, {1, 1, 1, 40, 60, 16, 3});
    call.query.FillNormal(random, ratio);
    ExpectHashOrders(call);
  }
}

TEST(LshPlan, ScalingQueriesAndKeysByAPowerOfTwoChangesNothing) {
  Random random(33);
  const Call call = LshCall(random, {1, 2, 2, 50, 60, 16, 3});
  const PlanParts made = PlanOf(call);
  for (const int exponent : {-110, -40, -1, 1, 50, 120}) {
    Call scaled = call;
    for (Tensor* tensor : {&scaled.query, &scaled.key}) {
      tensor->ForEach([&](auto b, auto h, auto i, auto c) {
        tensor->set(b, h, i, c, std::ldexp(tensor->at(b, h, i, c), exponent));
      });
    }
    EXPECT_TRUE(Same(PlanOf(scaled), made)) << exponent;
  }
}

TEST(LshPlan, AHeadDoesNotDependOnOtherHeads) {
  // Nor on how large they are: heads of one group share their keys only.
  Random random(34);
  const Call call = LshCall(random, {1, 2, 1, 50, 60, 16, 3});
  const PlanParts made = PlanOf(call);
  for (const double size : {1e-30, 1e10, 1e25, 1e37}) {
    Call other = call;
    other.query.ForEach([&](auto b, auto h, auto i, auto c) {
      if (h == 0) other.query.set(b, h, i, c, size * random.Normal());
    });
    const PlanParts changed = PlanOf(other);
    for (std::int64_t round = 0; round < made.rounds(); ++round) {
      EXPECT_TRUE(Same(changed.head(round, 0, 1), made.head(round, 0, 1))) << size;
    }
  }
}

TEST(LshPlan, TiesBreakByIndex) {
  Random random(35);
  // Many copies of three rows: each distinct row's copies follow each other by index.
  Call call = LshCall(random, {1, 1, 1, 150, 170, 20, 3});
  for (Tensor* tensor : {&call.query, &call.key}) {
    tensor->ForEach([&](auto b, auto h, auto i, auto c) {
      if (i >= 3) tensor->set(b, h, i, c, tensor->at(b, h, i % 3, c));
    });
  }
  const PlanParts made = PlanOf(call);
  for (const HeadPlan& head : made.heads) {
    for (const auto* order : {&head.query_order, &head.key_order}) {
      int changes = 0;
      for (std::size_t r = 1; r < order->size(); ++r) {
        if ((*order)[r] % 3 == (*order)[r - 1] % 3) {
          ASSERT_GT((*order)[r], (*order)[r - 1]);
        } else {
          ++changes;
        }
      }
      ASSERT_EQ(changes, 2);
    }
  }
  // Nothing but ties: zeros.
  call.query.ForEach([&](auto b, auto h, auto i, auto c) { call.query.set(b, h, i, c, 0.0); });
  call.key.ForEach([&](auto b, auto h, auto i, auto c) { call.key.set(b, h, i, c, 0.0); });
  for (const HeadPlan& head : PlanOf(call).heads) {
    EXPECT_TRUE(std::is_sorted(head.query_order.begin(), head.query_order.end()));
    EXPECT_TRUE(std::is_sorted(head.key_order.begin(), head.key_order.end()));
  }
}

TEST(LshPlan, RandomnessDependsOnSeedAndRoundOnly) {
  Random random(36);
  Call call = LshCall(random, {3, 4, 2, 40, 50, 8, 3});
  // Equal rows in every batch entry and head get equal plans.
  for (Tensor* tensor : {&call.query, &call.key}) {
    tensor->ForEach(
        [&](auto b, auto h, auto i, auto c) { tensor->set(b, h, i, c, tensor->at(0, 0, i, c)); });
  }
  const PlanParts made = PlanOf(call);
  for (std::int64_t round = 0; round < 3; ++round) {
    for (std::int64_t b = 0; b < 3; ++b) {
      for (std::int64_t h = 0; h < 4; ++h) {
        EXPECT_TRUE(Same(made.head(round, b, h), made.head(round, 0, 0)));
      }
    }
  }
  EXPECT_FALSE(Same(made.head(0, 0, 0), made.head(1, 0, 0)));
  // More rounds add rounds, they change none.
  Call longer = call;
  longer.options.n_hashes = 7;
  const PlanParts more = PlanOf(longer);
  for (std::int64_t round = 0; round < 3; ++round) {
    EXPECT_TRUE(Same(more.head(round, 0, 0), made.head(round, 0, 0)));
  }
  Call reseeded = call;
  reseeded.options.seed = 18;
  EXPECT_FALSE(Same(PlanOf(reseeded), made));
}

TEST(LshPlan, IsTheSameForEveryLayoutTypeAndNumberOfThreads) {
  Random random(37);
  Call call = LshCall(random, {2, 4, 2, 70, 90, 24, 3}, DType::kBFloat16);
  const PlanParts made = PlanOf(call);
  for (const Layout layout : {Layout::kBnhd, Layout::kGaps, Layout::kReversed}) {
    Call other(call.shape, DType::kFloat32, layout, layout, layout);
    other.options = call.options;
    other.query.ForEach([&](auto... at) { other.query.set(at..., call.query.at(at...)); });
    other.key.ForEach([&](auto... at) { other.key.set(at..., call.key.at(at...)); });
    for (const int threads : {1, 2, 3}) {
      other.options.num_threads = threads;
      EXPECT_TRUE(Same(PlanOf(other), made));
    }
  }
}

TEST(LshPlan, PaddedRowsChangeNothing) {
  Random random(38);
  const Call call = LshCall(random, {1, 2, 1, 45, 61, 12, 3});
  const PlanParts made = PlanOf(call);
  // The same rows with padding of NaN in front, in between and behind.
  const auto widen = [&](const Tensor& from, std::vector<std::int32_t>& valid, Tensor& to,
                         std::optional<Tensor>& mask) {
    const std::int64_t length = from.shape()[2];
    to = Tensor(from.dtype(), {1, from.shape()[1], 2 * length, from.shape()[3]});
    mask = Tensor(DType::kBool, {1, 1, 1, 2 * length});
    for (std::int64_t i = 0; i < length; ++i) {
      valid.push_back(static_cast<std::int32_t>(i < 20 ? i + 3 : 2 * i - 17));
    }
    for (std::int64_t i = 0; i < 2 * length; ++i) {
      mask->set(0, 0, 0, i, 0.0);
      for (std::int64_t h = 0; h < from.shape()[1]; ++h) to.FillRow(0, h, i, kNaN);
    }
    for (std::int64_t i = 0; i < length; ++i) {
      const std::int64_t at = valid[static_cast<std::size_t>(i)];
      mask->set(0, 0, 0, at, 1.0);
      for (std::int64_t h = 0; h < from.shape()[1]; ++h) {
        for (std::int64_t c = 0; c < from.shape()[3]; ++c) {
          to.set(0, h, at, c, from.at(0, h, i, c));
        }
      }
    }
  };
  Call padded = call;
  std::vector<std::int32_t> valid_queries;
  std::vector<std::int32_t> valid_keys;
  std::vector<std::int32_t> ignored;
  std::optional<Tensor> same_mask;
  widen(call.query, valid_queries, padded.query, padded.query_padding_mask);
  widen(call.key, valid_keys, padded.key, padded.key_padding_mask);
  widen(call.value, ignored, padded.value, same_mask);
  padded.shape.queries *= 2;
  padded.shape.keys *= 2;
  const PlanParts other = PlanOf(padded);
  for (std::size_t n = 0; n < made.heads.size(); ++n) {
    HeadPlan expected = made.heads[n];
    for (auto& i : expected.query_order) i = valid_queries[static_cast<std::size_t>(i)];
    for (auto& j : expected.key_order) j = valid_keys[static_cast<std::size_t>(j)];
    EXPECT_TRUE(Same(other.heads[n], expected));
  }
}

}  // namespace
}  // namespace smyrf::testing
