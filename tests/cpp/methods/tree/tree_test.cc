// `tree`: carrying out its plans, and its limits: tolerance 0, keys in any order, few rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/tree_call.h"

namespace smyrf::testing {
namespace {

// Exact: the executor against the float64 reference on the same plan.

TEST(Tree, RandomCalls) {
  Random random(140);
  int sparse = 0;
  for (int n = 0; n < 50 && !::testing::Test::HasFatalFailure(); ++n) {
    const Call call = RandomTreeCall(random, 3e5);
    SCOPED_TRACE(::testing::Message() << "call " << n << ": " << call);
    const Layout layout = random.Of({Layout::kContiguous, Layout::kBnhd, Layout::kGaps,
                                     Layout::kReversed, Layout::kHeadsReversed});
    // One plan for all instruction sets: their own may differ where scores nearly tie.
    const PlanParts made = PlanOf(call);
    const Exact exact = RunReference(call, &made);
    ForEachInstructionSet([&] {
      const Result result = Attend(call, &made, layout);
      ASSERT_TRUE(Close(call, result, exact, kMerges));
      ASSERT_TRUE(result.out.GapsUntouched());
    });
    const Result result = Attend(call);
    ASSERT_EQ(result.statistics.method, Method::kTree);
    ASSERT_TRUE(Close(call, result, exact, kMerges));
    call.ForEachRow([&](auto b, auto h, auto) {
      const Statistics::Head& head =
          result.statistics.heads[static_cast<std::size_t>(b * call.shape.query_heads + h)];
      ASSERT_NEAR(head.density, DensityOf(made, b, h), 1e-12);
      ASSERT_EQ(head.dense, made.head(0, b, h).dense);
      ASSERT_EQ(head.expected_error, made.head(0, b, h).expected_error);
      ASSERT_EQ(head.expected_lse_error, made.head(0, b, h).expected_lse_error);
      ASSERT_FALSE(head.non_finite);
      ASSERT_GE(head.planning_seconds, 0.0);
      ASSERT_GE(head.seconds, 0.0);
    });
    for (const HeadPlan& head : made.heads) sparse += head.blocks.empty() ? 0 : 1;
  }
  EXPECT_GT(sparse, 30);
}

TEST(Tree, ACallWithoutPlanGivesTheResultOfItsPlan) {
  Random random(141);
  for (int n = 0; n < 15; ++n) {
    const Call call = RandomTreeCall(random, 3e5);
    ForEachInstructionSet([&] {
      const PlanParts made = PlanOf(call);
      const Result planned = Attend(call, &made);
      const Result result = Attend(call);
      // The same arithmetic in another order of calls.
      result.out.ForEach([&](auto... at) {
        const double bound = (4.0 * UnitRoundoff(call.query.dtype()) + 1e-5) *
                             (1.0 + std::abs(planned.out.at(at...)));
        ASSERT_NEAR(result.out.at(at...), planned.out.at(at...), bound) << call;
      });
      for (std::size_t row = 0; row < call.rows(); ++row) {
        if (std::isinf(planned.lse[row])) {
          ASSERT_EQ(result.lse[row], planned.lse[row]) << call;
        } else {
          ASSERT_NEAR(result.lse[row], planned.lse[row], 1e-5 * (1.0 + std::abs(result.lse[row])))
              << call;
        }
      }
    });
  }
}

/// The same plan with every key exact in every block.
PlanParts Opened(PlanParts made) {
  for (std::int64_t b = 0; b < made.batch; ++b) {
    for (std::int64_t h = 0; h < made.query_heads; ++h) {
      HeadPlan& head = made.heads[static_cast<std::size_t>(b * made.query_heads + h)];
      const KeyForest& tree = made.forest(b, h / (made.query_heads / made.key_heads));
      head.nodes.clear();
      head.ranges = {{0, static_cast<std::int32_t>(tree.key_order.size())}};
      for (QueryBlock& block : head.blocks) {
        block.first_range = 0;
        block.last_range = 1;
        block.first_node = block.last_node = 0;
      }
    }
  }
  return made;
}

TEST(Tree, APlanThatOpensEverythingIsDense) {
  Random random(142);
  int sparse = 0;
  for (int n = 0; n < 40 && !::testing::Test::HasFatalFailure(); ++n) {
    const Call call = RandomTreeCall(random, 3e5);
    SCOPED_TRACE(::testing::Message() << "call " << n << ": " << call);
    const PlanParts opened = Opened(PlanOf(call));
    const Exact dense = RunReference(AsDense(call));
    ForEachInstructionSet([&] { ASSERT_TRUE(Close(call, Attend(call, &opened), dense, 0.0)); });
    for (const HeadPlan& head : opened.heads) sparse += head.blocks.empty() ? 0 : 1;
  }
  EXPECT_GT(sparse, 20);
}

// Exact: tolerance 0 evaluates every pair.

TEST(Tree, ToleranceZeroIsDense) {
  Random random(143);
  for (int n = 0; n < 40 && !::testing::Test::HasFatalFailure(); ++n) {
    Call call = RandomTreeCall(random, 3e5);
    call.options.tolerance = 0.0;
    call.options.max_density.reset();
    const Result result = Attend(call);
    ASSERT_TRUE(Close(call, result, RunReference(AsDense(call)), 0.0));
    for (const auto& head : result.statistics.heads) {
      ASSERT_EQ(head.density, 1.0);
      ASSERT_EQ(head.expected_error, 0.0);
      ASSERT_EQ(head.expected_lse_error, 0.0);
    }
  }
}

/// Keys and values in another order.
Call ShuffledKeys(Random& random, const Call& call) {
  Call shuffled = call;
  std::vector<std::int64_t> order(static_cast<std::size_t>(call.shape.keys));
  for (std::size_t j = 0; j < order.size(); ++j) order[j] = static_cast<std::int64_t>(j);
  for (std::size_t j = order.size(); j > 1; --j) {
    std::swap(order[j - 1],
              order[static_cast<std::size_t>(random.Below(static_cast<std::int64_t>(j)))]);
  }
  const auto from = [&](auto j) { return order[static_cast<std::size_t>(j)]; };
  shuffled.key.ForEach([&](auto b, auto h, auto j, auto c) {
    shuffled.key.set(b, h, j, c, call.key.at(b, h, from(j), c));
  });
  shuffled.value.ForEach([&](auto b, auto h, auto j, auto c) {
    shuffled.value.set(b, h, j, c, call.value.at(b, h, from(j), c));
  });
  return shuffled;
}

TEST(Tree, ToleranceHoldsForKeysInAnyOrder) {
  Random random(144);
  for (const double tolerance : {0.0, 0.05, 0.2}) {
    Call call = TreeCall({1, 2, 1, 300, 900, 32, 24}, tolerance);
    FillSmooth(random, call);
    const Exact dense = RunReference(AsDense(call));
    for (const Call& other : {call, ShuffledKeys(random, call)}) {
      const int sparse = ExpectTolerance(other);
      EXPECT_EQ(sparse, tolerance == 0.0 ? 0 : 2);
      if (tolerance == 0.0) {
        EXPECT_TRUE(Close(other, Attend(other), dense, 0.0));
      }
    }
  }
}

// Exact counts: what a longer sequence costs.

/// Nodes that are looked at for a block: those that are under no closed one.
std::int64_t Visited(const HeadPlan& head, const QueryBlock& block, const KeyForest& tree) {
  std::vector<char> closed(tree.nodes.size(), 0);
  for (std::uint32_t n = block.first_node; n < block.last_node; ++n) {
    closed[static_cast<std::size_t>(head.nodes[n])] = 1;
  }
  std::vector<std::int32_t> open(static_cast<std::size_t>(tree.segments[0].roots));
  std::iota(open.begin(), open.end(), 0);
  std::int64_t count = 0;
  while (!open.empty()) {
    const auto id = static_cast<std::size_t>(open.back());
    open.pop_back();
    ++count;
    const Node& node = tree.nodes[id];
    for (std::int32_t k = 0; k < node.child_count && closed[id] == 0; ++k) {
      open.push_back(node.first_child + k);
    }
  }
  return count;
}

TEST(Tree, FourTimesTheKeysAreLessThanTwiceTheWork) {
  // The same points of a plane, more and more of them: values vary as they did.
  std::vector<double> visited;
  std::vector<double> evaluated;
  for (const std::int64_t keys : {16384, 65536}) {
    Random same(146);
    Call call = TreeCall({1, 1, 1, 160, keys, 16, 8}, 0.1);
    FillSmooth(same, call);
    const PlanParts made = PlanOf(call);
    const HeadPlan& head = made.heads[0];
    ASSERT_FALSE(head.dense);
    double count = 0.0;
    for (const QueryBlock& block : head.blocks) {
      count += static_cast<double>(Visited(head, block, made.forests[0]));
    }
    visited.push_back(count / static_cast<double>(head.blocks.size()));
    evaluated.push_back(DensityOf(made, 0, 0) * static_cast<double>(keys));
  }
  for (std::size_t n = 1; n < visited.size(); ++n) {
    EXPECT_LT(visited[n], 2.0 * visited[n - 1]) << n;
    EXPECT_LT(evaluated[n], 2.0 * evaluated[n - 1]) << n;
  }
}

}  // namespace
}  // namespace smyrf::testing
