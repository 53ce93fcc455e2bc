// Exact: the invariants of a `tree` plan.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "methods/tree/planner.h"
#include "testing/bounds.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

constexpr std::int32_t kMostQueries = 16;  // a block

/// Of a leaf.
std::int32_t MostKeys(std::int64_t keys) {
  const double growth = std::sqrt(static_cast<double>(keys) / 1792.0);
  return static_cast<std::int32_t>(8.0 * std::clamp(growth, 1.0, 1.5));
}

/// The valid keys once each; roots partition those that are no sinks, children their parent; every
/// node but a root has one parent; leaves hold 1 to 8 keys, or more where there are many.
void ExpectTree(const KeyForest& tree, const std::vector<std::int32_t>& keys) {
  ASSERT_EQ(Sorted(tree.key_order), keys);
  ASSERT_EQ(tree.segments.size(), tree.nodes.empty() ? 0U : 1U);
  if (tree.nodes.empty()) return;
  ASSERT_TRUE(
      std::is_sorted(tree.key_order.begin(), tree.key_order.begin() + tree.segments[0].sinks));
  ASSERT_GT(tree.segments[0].sinks, 0);
  ASSERT_GT(tree.segments[0].roots, 0);
  const auto partition = [&](std::int32_t first, std::int32_t count, std::int32_t begin,
                             std::int32_t end) {
    for (std::int32_t id = first; id < first + count; ++id) {
      const Node& node = tree.nodes[static_cast<std::size_t>(id)];
      ASSERT_EQ(node.begin, begin) << "node " << id;
      ASSERT_GT(node.end, node.begin) << "node " << id;
      begin = node.end;
    }
    ASSERT_EQ(begin, end);
  };
  partition(0, tree.segments[0].roots, tree.segments[0].sinks,
            static_cast<std::int32_t>(tree.key_order.size()));
  std::vector<int> parents(tree.nodes.size());
  for (std::size_t id = 0; id < tree.nodes.size(); ++id) {
    const Node& node = tree.nodes[id];
    if (node.child_count == 0) {
      ASSERT_LE(node.end - node.begin, MostKeys(std::ssize(keys))) << "node " << id;
      continue;
    }
    ASSERT_GE(node.child_count, 2);
    ASSERT_LE(node.child_count, 4);
    ASSERT_GE(node.first_child, tree.segments[0].roots);
    ASSERT_LE(node.first_child + node.child_count, std::ssize(tree.nodes));
    partition(node.first_child, node.child_count, node.begin, node.end);
    for (std::int32_t k = 0; k < node.child_count; ++k) {
      ++parents[static_cast<std::size_t>(node.first_child) + static_cast<std::size_t>(k)];
    }
  }
  for (std::size_t id = 0; id < parents.size(); ++id) {
    ASSERT_EQ(parents[id], id < static_cast<std::size_t>(tree.segments[0].roots) ? 0 : 1)
        << "node " << id;
  }
}

/// Every valid query in one block of at most 16, and in each block every valid key once: exact or
/// under one node. Returns the pairs and summaries that are evaluated.
double ExpectBlocks(const HeadPlan& head, const KeyForest& tree,
                    const std::vector<std::int32_t>& queries) {
  double pairs = 0.0;
  EXPECT_EQ(Sorted(head.query_order), queries);
  EXPECT_TRUE(head.key_order.empty());
  std::int32_t after = 0;
  std::size_t ranges = 0;
  std::size_t nodes = 0;
  for (const QueryBlock& block : head.blocks) {
    EXPECT_EQ(block.begin, after);
    EXPECT_GT(block.end, block.begin);
    EXPECT_LE(block.end - block.begin, kMostQueries);
    after = block.end;
    EXPECT_EQ(block.first_range, ranges);
    EXPECT_EQ(block.first_node, nodes);
    ranges = block.last_range;
    nodes = block.last_node;
    std::vector<int> covered(tree.key_order.size());
    const auto cover = [&](std::int32_t begin, std::int32_t end) {
      for (std::int32_t j = begin; j < end; ++j) ++covered.at(static_cast<std::size_t>(j));
    };
    EXPECT_LT(block.first_range, block.last_range);
    std::int32_t last = -1;
    double evaluated = 0.0;
    for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
      const KeyRange& range = head.ranges.at(r);
      EXPECT_LT(range.begin, range.end);
      EXPECT_GT(range.begin, last);  // ascending, and joined where they touch
      last = range.end;
      cover(range.begin, range.end);
      evaluated += range.end - range.begin;
    }
    EXPECT_EQ(head.ranges[block.first_range].begin, 0);
    EXPECT_GE(head.ranges[block.first_range].end, tree.segments[0].sinks);
    for (std::uint32_t n = block.first_node; n < block.last_node; ++n) {
      const Node& node = tree.nodes.at(static_cast<std::size_t>(head.nodes.at(n)));
      cover(node.begin, node.end);
      evaluated += 1.0;
    }
    EXPECT_TRUE(std::all_of(covered.begin(), covered.end(), [](int n) { return n == 1; }));
    pairs += evaluated * (block.end - block.begin);
  }
  EXPECT_EQ(after, std::ssize(queries));
  EXPECT_EQ(ranges, head.ranges.size());
  EXPECT_EQ(nodes, head.nodes.size());
  return pairs;
}

struct Counts {
  int heads = 0, dense = 0, open = 0, closed = 0;
};

void ExpectPlan(const Call& call, const PlanParts& made, Counts& counts) {
  ASSERT_EQ(made.method, Method::kTree);
  ASSERT_EQ(made.rounds(), 1);
  for (std::int64_t b = 0; b < call.shape.batch; ++b) {
    const std::vector<std::int32_t> queries = ValidRows(call, b, true);
    const std::vector<std::int32_t> keys = ValidRows(call, b, false);
    for (std::int64_t g = 0; g < call.shape.key_heads; ++g) {
      if (!queries.empty()) ExpectTree(made.forest(b, g), keys);
    }
    for (std::int64_t h = 0; h < call.shape.query_heads; ++h) {
      const HeadPlan& head = made.head(0, b, h);
      ASSERT_FALSE(head.non_finite);
      if (queries.empty() || keys.empty() || head.dense) {
        ASSERT_TRUE(head.blocks.empty());
        ASSERT_EQ(DensityOf(made, b, h), 1.0);
        counts.dense += head.dense ? 1 : 0;
        counts.heads += head.dense ? 1 : 0;
        continue;
      }
      const KeyForest& tree = made.forest(b, call.KeyHead(h));
      const double pairs = ExpectBlocks(head, tree, queries);
      const double all = static_cast<double>(queries.size()) * static_cast<double>(keys.size());
      ASSERT_NEAR(DensityOf(made, b, h), pairs / all, 1e-12);
      ++counts.heads;
      counts.open += head.ranges.size() > head.blocks.size() ? 1 : 0;
      counts.closed += head.nodes.empty() ? 0 : 1;
    }
  }
}

TEST(TreePlan, EveryValidKeyIsCoveredOnceByEveryBlockOfRandomCalls) {
  Random random(130);
  Counts counts;
  for (int n = 0; n < 80 && !::testing::Test::HasFailure(); ++n) {
    const Call call = RandomTreeCall(random, 1e6);
    SCOPED_TRACE(::testing::Message() << "call " << n << ": " << call);
    ExpectPlan(call, PlanOf(call), counts);
  }
  // The calls are worth the while: most heads have blocks, which open some nodes and keep others.
  EXPECT_GT(counts.heads - counts.dense, counts.heads / 2);
  EXPECT_GT(counts.open, counts.heads / 10);
  EXPECT_GT(counts.closed, counts.heads / 2);
}

TEST(TreePlan, EveryNumberOfQueriesAndKeysAroundBlocksAndLeaves) {
  Random random(131);
  Counts counts;
  for (std::int64_t n = 0; n < 70 && !::testing::Test::HasFailure(); ++n) {
    Call call({1, 1, 1, 1 + n, 60 + 3 * n, 6, 5});
    call.FillNormal(random);
    call.options.method = Method::kTree;
    call.options.tolerance = 0.9;
    call.options.max_density = 0.9;
    SCOPED_TRACE(::testing::Message() << call);
    ExpectPlan(call, PlanOf(call), counts);
    ASSERT_EQ(PlanOf(call).head(0, 0, 0).dense, call.shape.keys < 64);
  }
}

TEST(TreePlan, LongSequencesInDeepTrees) {
  Random random(132);
  Counts counts;
  for (const std::int64_t keys : {2049, 5003}) {
    Call call({1, 2, 1, 777, keys, 40, 30}, DType::kBFloat16);
    FillSmooth(random, call);
    call.options.method = Method::kTree;
    SCOPED_TRACE(::testing::Message() << call);
    ExpectPlan(call, PlanOf(call), counts);
  }
  EXPECT_EQ(counts.dense, 0);  // at the default tolerance and without a cap
}

TEST(TreePlan, IsTheSameForEveryLayoutTypeAndNumberOfThreads) {
  Random random(133);
  Call call({2, 4, 2, 70, 190, 24, 3}, DType::kBFloat16);
  call.FillNormal(random);
  call.options.method = Method::kTree;
  call.options.max_density = 0.5;
  const PlanParts made = PlanOf(call);
  for (const Layout layout : {Layout::kBnhd, Layout::kGaps, Layout::kReversed}) {
    Call other(call.shape, DType::kFloat32, layout, layout, layout);
    other.options = call.options;
    other.query.ForEach([&](auto... at) { other.query.set(at..., call.query.at(at...)); });
    other.key.ForEach([&](auto... at) { other.key.set(at..., call.key.at(at...)); });
    other.value.ForEach([&](auto... at) { other.value.set(at..., call.value.at(at...)); });
    for (const int threads : {1, 2, 3}) {
      other.options.num_threads = threads;
      const PlanParts same = PlanOf(other);
      for (std::size_t t = 0; t < made.forests.size(); ++t) {
        ASSERT_EQ(same.forests[t].key_order, made.forests[t].key_order);
      }
      for (std::size_t n = 0; n < made.heads.size(); ++n) {
        ASSERT_EQ(same.heads[n].query_order, made.heads[n].query_order);
        ASSERT_EQ(same.heads[n].nodes, made.heads[n].nodes);
        ASSERT_EQ(same.heads[n].ranges.size(), made.heads[n].ranges.size());
        ASSERT_EQ(same.heads[n].expected_error, made.heads[n].expected_error);
      }
    }
  }
}

TEST(TreePlan, RandomnessDependsOnTheSeedOnly) {
  Random random(134);
  Call call({3, 2, 2, 300, 400, 8, 8});
  call.FillNormal(random);
  // Equal rows in every batch entry and head get equal plans.
  for (Tensor* tensor : {&call.query, &call.key, &call.value}) {
    tensor->ForEach(
        [&](auto b, auto h, auto i, auto c) { tensor->set(b, h, i, c, tensor->at(0, 0, i, c)); });
  }
  call.options.method = Method::kTree;
  call.options.max_density = 0.6;
  const PlanParts made = PlanOf(call);
  for (const HeadPlan& head : made.heads) {
    ASSERT_FALSE(head.blocks.empty());
    EXPECT_EQ(head.query_order, made.heads[0].query_order);
    EXPECT_EQ(head.nodes, made.heads[0].nodes);
    EXPECT_EQ(head.expected_error, made.heads[0].expected_error);
  }
  // Another seed samples other rows, which expect another error.
  call.options.seed = 18;
  EXPECT_NE(PlanOf(call).heads[0].expected_error, made.heads[0].expected_error);
}

TEST(TreePlan, ScalingQueriesAndKeysByPowersOfTwoChangesNothing) {
  // Nor do queries and keys of very different sizes, as long as scale makes up for it.
  Random random(135);
  Call call({1, 2, 1, 90, 300, 16, 6});
  call.FillNormal(random);
  call.options.method = Method::kTree;
  call.options.scale = 0.25;
  call.options.max_density = 0.5;
  const PlanParts made = PlanOf(call);
  for (const auto& [of_query, of_key] :
       {std::pair{1, 1}, {-3, 3}, {60, 60}, {-60, -60}, {60, -60}, {-60, 60}}) {
    Call scaled = call;
    scaled.query.ForEach([&, exponent = of_query](auto... at) {
      scaled.query.set(at..., std::ldexp(call.query.at(at...), exponent));
    });
    scaled.key.ForEach([&, exponent = of_key](auto... at) {
      scaled.key.set(at..., std::ldexp(call.key.at(at...), exponent));
    });
    scaled.options.scale = std::ldexp(0.25, -of_query - of_key);
    const PlanParts other = PlanOf(scaled);
    EXPECT_EQ(other.forests[0].key_order, made.forests[0].key_order) << of_query << " " << of_key;
    for (std::size_t h = 0; h < 2; ++h) {
      EXPECT_EQ(other.heads[h].query_order, made.heads[h].query_order) << of_query << " " << of_key;
      EXPECT_EQ(other.heads[h].nodes, made.heads[h].nodes) << of_query << " " << of_key;
    }
  }
}

TEST(TreePlan, PlacesThatABlockCannotHoldAreRefused) {
  EXPECT_EQ(PlanOffset(0), 0U);
  EXPECT_EQ(PlanOffset(0xFFFFFFFFU), 0xFFFFFFFFU);
  EXPECT_THROW(PlanOffset(std::size_t{1} << 32), Error);
  // Calls that keep their plan find it out before they write.
  EXPECT_TRUE(AlwaysFits(65536, 65536));
  EXPECT_TRUE(AlwaysFits(std::int64_t{1} << 31, 0));
  EXPECT_TRUE(AlwaysFits(16, 0xFFFFFFFF));
  EXPECT_FALSE(AlwaysFits(17, 0xFFFFFFFF));
  EXPECT_FALSE(AlwaysFits(std::int64_t{1} << 21, std::int64_t{1} << 21));
}

}  // namespace
}  // namespace smyrf::testing
