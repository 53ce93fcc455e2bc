// Forests of two segments: the executors carry them out, forward and backward. Exact: against the
// float64 reference of the same plan.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "testing/bounds.h"
#include "testing/gradients.h"
#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/tree_call.h"

namespace smyrf::testing {
namespace {

/// The call over keys [first, first + count) alone.
Call OverKeys(const Call& call, std::int64_t first, std::int64_t count) {
  Shape shape = call.shape;
  shape.keys = count;
  Call part(shape, call.key.dtype());
  part.options = call.options;
  part.query = call.query;
  const auto slice = [&](const Tensor& from, Tensor& to) {
    to.ForEach(
        [&](auto b, auto h, auto j, auto c) { to.set(b, h, j, c, from.at(b, h, first + j, c)); });
  };
  slice(call.key, part.key);
  slice(call.value, part.value);
  if (call.key_padding_mask) {
    part.key_padding_mask = Tensor(DType::kBool, {1, 1, shape.batch, count});
    part.key_padding_mask->ForEach([&](auto x, auto y, auto b, auto j) {
      part.key_padding_mask->set(x, y, b, j, call.key_padding_mask->at(x, y, b, first + j));
    });
  }
  return part;
}

/// Appends the segment of `other`, whose keys lie behind. No number of `forest` changes.
void Append(const KeyForest& other, std::int32_t first_key, KeyForest& forest) {
  const auto rows = static_cast<std::int32_t>(forest.key_order.size());
  const auto nodes = static_cast<std::int32_t>(forest.nodes.size());
  for (const std::int32_t key : other.key_order) forest.key_order.push_back(key + first_key);
  for (Node node : other.nodes) {
    node.begin += rows;
    node.end += rows;
    if (node.child_count > 0) node.first_child += nodes;
    forest.nodes.push_back(node);
  }
  for (Segment segment : other.segments) {
    segment.first_key += first_key;
    segment.last_key += first_key;
    segment.begin += rows;
    segment.end += rows;
    segment.first_node += nodes;
    segment.last_node += nodes;
    forest.segments.push_back(segment);
  }
  forest.directions.insert(forest.directions.end(), other.directions.begin(),
                           other.directions.end());
  forest.profiles.insert(forest.profiles.end(), other.profiles.begin(), other.profiles.end());
}

/// Lets a block evaluate a segment: its sinks, and from the roots on nodes that are closed or
/// opened at random.
void Cut(Random& random, const KeyForest& forest, const Segment& segment, HeadPlan& head) {
  if (segment.sinks > 0) head.ranges.push_back({segment.begin, segment.begin + segment.sinks});
  std::vector<std::int32_t> open;
  open.reserve(static_cast<std::size_t>(segment.roots));
  for (std::int32_t i = 0; i < segment.roots; ++i) open.push_back(segment.first_node + i);
  while (!open.empty()) {
    const std::int32_t id = open.back();
    open.pop_back();
    const Node& node = forest.nodes[static_cast<std::size_t>(id)];
    if (random.Chance(0.4)) {
      head.nodes.push_back(id);
    } else if (node.child_count == 0) {
      head.ranges.push_back({node.begin, node.end});
    } else {
      for (std::int32_t i = 0; i < node.child_count; ++i) open.push_back(node.first_child + i);
    }
  }
}

/// A plan of the call whose keys are two segments, cut after the first `count`.
PlanParts TwoSegments(Random& random, const Call& call, std::int64_t count) {
  PlanParts plan = PlanOf(OverKeys(call, 0, count));
  const PlanParts behind = PlanOf(OverKeys(call, count, call.shape.keys - count));
  plan.keys = call.shape.keys;
  plan.valid_keys = PlanOf(call).valid_keys;
  for (std::size_t i = 0; i < plan.forests.size(); ++i) {
    Append(behind.forests[i], static_cast<std::int32_t>(count), plan.forests[i]);
  }
  const std::int64_t group = plan.query_heads / plan.key_heads;
  for (std::int64_t b = 0; b < plan.batch; ++b) {
    for (std::int64_t h = 0; h < plan.query_heads; ++h) {
      HeadPlan& head = plan.heads[plan.HeadIndex(0, b, h)];
      const KeyForest& forest = plan.forest(b, h / group);
      head.ranges.clear();
      head.nodes.clear();
      for (QueryBlock& block : head.blocks) {
        block.first_range = static_cast<std::uint32_t>(head.ranges.size());
        block.first_node = static_cast<std::uint32_t>(head.nodes.size());
        for (const Segment& segment : forest.segments) Cut(random, forest, segment, head);
        block.last_range = static_cast<std::uint32_t>(head.ranges.size());
        block.last_node = static_cast<std::uint32_t>(head.nodes.size());
      }
    }
  }
  return plan;
}

Call LongCall(Random& random, bool padded) {
  Call call({2, 4, 2, 150, 520, 16, 8});
  call.FillNormal(random);
  call.options.method = Method::kTree;
  call.options.max_density = 0.8;  // not dense
  if (padded) {
    call.key_padding_mask = Tensor(DType::kBool, {1, 1, 2, 520});
    call.key_padding_mask->ForEach([&](auto x, auto y, auto b, auto j) {
      call.key_padding_mask->set(x, y, b, j, b == 0 || (j >= 40 && j < 500) ? 1.0 : 0.0);
    });
  }
  return call;
}

TEST(Forest, OfTwoSegmentsIsTheReferences) {
  Random random(451);
  for (const bool padded : {false, true}) {
    const Call call = LongCall(random, padded);
    const PlanParts plan = TwoSegments(random, call, 300);
    for (const KeyForest& forest : plan.forests) ASSERT_EQ(forest.segments.size(), 2U);
    for (const HeadPlan& head : plan.heads) ASSERT_FALSE(head.blocks.empty());
    const Exact exact = RunReference(call, &plan);
    ForEachInstructionSet(
        [&] { ASSERT_TRUE(Close(call, Attend(call, &plan), exact, kMerges)) << call; });
  }
}

TEST(Forest, OfTwoSegmentsHasTheReferencesGradients) {
  Random random(452);
  const Call call = LongCall(random, true);
  const PlanParts plan = TwoSegments(random, call, 300);
  const Upstream upstream = RandomUpstream(random, call, true);
  const Result result = Attend(call, &plan);
  const GradientTensors got = Backward(call, result, upstream, &plan);
  EXPECT_TRUE(CloseGradients(call, got, ReferenceBackward(call, upstream, &plan), upstream));
}

TEST(Forest, HasTheSameBitsOnAnyThreadsAndAfterAFile) {
  Random random(453);
  Call call = LongCall(random, true);
  const Plan plan = Pack(TwoSegments(random, call, 260));
  const Plan again = Plan::from_bytes(plan.to_bytes());
  const Upstream upstream = RandomUpstream(random, call, true);
  call.options.num_threads = 1;
  const Result result = Attend(call, &plan);
  const GradientTensors gradients = Backward(call, result, upstream, &plan);
  for (const int threads : {2, 3}) {
    call.options.num_threads = threads;
    EXPECT_TRUE(Attend(call, &again).SameBits(result));
    EXPECT_TRUE(Backward(call, result, upstream, &again).SameBits(gradients));
  }
}

TEST(Forest, ThatIsDamagedIsRefused) {
  Random random(454);
  const Call call = LongCall(random, false);
  const PlanParts whole = TwoSegments(random, call, 300);
  ASSERT_NO_THROW((void)Attend(call, &whole));
  using Damage = void (*)(KeyForest&);
  const Damage damages[] = {
      [](KeyForest& f) { f.segments.pop_back(); },
      [](KeyForest& f) { f.segments.push_back(f.segments[1]); },
      [](KeyForest& f) { std::swap(f.segments[0], f.segments[1]); },
      [](KeyForest& f) { f.segments.clear(); },
      [](KeyForest& f) {
        f.key_order.clear();
        f.nodes.clear();
        f.directions.clear();
        f.profiles.clear();
        f.segments = {Segment{}};
      },
      [](KeyForest& f) { --f.segments[1].first_key; },  // overlaps the first
      [](KeyForest& f) { ++f.segments[1].first_key; },  // a key lies outside
      [](KeyForest& f) { f.segments[0].first_key = -1; },
      [](KeyForest& f) { f.segments[1].last_key = 521; },
      [](KeyForest& f) { --f.segments[0].last_key; },
      [](KeyForest& f) { ++f.segments[0].end; },
      [](KeyForest& f) { ++f.segments[1].begin; },
      [](KeyForest& f) { f.segments[1].end = 521; },
      [](KeyForest& f) { ++f.segments[1].sinks; },
      [](KeyForest& f) { f.segments[1].sinks = -1; },
      [](KeyForest& f) { f.segments[1].sinks = 1 << 30; },
      [](KeyForest& f) { --f.segments[1].roots; },
      [](KeyForest& f) { f.segments[1].roots = 1 << 30; },
      [](KeyForest& f) { ++f.segments[0].last_node; },
      [](KeyForest& f) { --f.segments[1].first_node; },
      [](KeyForest& f) { f.nodes[0].first_child = f.segments[1].first_node; },
      [](KeyForest& f) { f.profiles.pop_back(); },
  };
  for (std::size_t i = 0; i < std::size(damages); ++i) {
    PlanParts damaged = whole;
    damages[i](damaged.forests[1]);
    EXPECT_THROW((void)Attend(call, &damaged), Error) << i;
  }
}

}  // namespace
}  // namespace smyrf::testing
