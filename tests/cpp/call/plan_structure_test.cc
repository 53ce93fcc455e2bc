// Hostile: plans that break what plan.h says of them are refused, and nothing is written.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "testing/bounds.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

/// Every call that takes a plan refuses this one, with a sentence, and writes nothing.
void ExpectRefused(Call call, const PlanParts& parts) {
  const Plan made = Pack(PlanParts(parts));
  call.options = {};
  call.options.enable_gqa = true;
  call.key_padding_mask.reset();  // which the plan holds
  call.query_padding_mask.reset();
  const Shape& s = call.shape;
  Tensor out(call.query.dtype(), {s.batch, s.query_heads, s.queries, s.value_depth});
  const std::vector<std::byte> before = out.memory();
  try {
    attention(call.arguments(), call.options, {out.mutable_view()}, &made);
    ADD_FAILURE() << "a damaged plan was taken";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.kind(), ErrorKind::kValue) << message;
    EXPECT_EQ(message.rfind("plan: its ", 0), 0U) << message;
    EXPECT_NE(message.find(" are damaged: "), std::string::npos) << message;
    EXPECT_NE(message.find("; make it with plan()"), std::string::npos) << message;
  }
  EXPECT_EQ(out.memory(), before);
  EXPECT_THROW((void)RunReference(call, &made), Error);
  const std::vector<float> lse(call.rows());
  EXPECT_THROW(
      attention_backward(
          call.arguments(), call.options, out.view(),
          Contiguous<const void>(lse.data(), DType::kFloat32, {s.batch, s.query_heads, s.queries}),
          out.view(), std::nullopt,
          {call.query.mutable_view(), call.key.mutable_view(), call.value.mutable_view()}, &made),
      Error);
}

Tensor Padding(std::int64_t length, std::int64_t valid) {
  Tensor mask(DType::kBool, {1, 1, 2, length});
  for (std::int64_t i = valid; i < length; ++i) mask.set(0, 0, 1, i, 0.0);  // others are True
  return mask;
}

/// Two batch entries, the second padded, of two key heads with two query heads each.
Call PaddedCall(Method method) {
  Random random(410);
  Call call({2, 4, 2, 60, 300, 8, 4});
  call.FillNormal(random);
  call.options.method = method;
  call.query_padding_mask = Padding(60, 50);
  call.key_padding_mask = Padding(300, 280);
  if (method == Method::kLsh) {
    call.options.cluster_size = 30;
    call.options.n_hashes = 2;
  }
  if (method == Method::kTree) call.options.max_density = 0.8;  // not dense
  return call;
}

using Damage = std::function<void(PlanParts&)>;

void ExpectAllRefused(const Call& call, const std::vector<Damage>& damages) {
  const PlanParts made = PlanOf(call);
  ASSERT_NO_THROW((void)Attend(call, &made));
  ASSERT_FALSE(made.method != Method::kDense && made.heads[6].blocks.size() < 3);
  for (std::size_t i = 0; i < damages.size(); ++i) {
    SCOPED_TRACE("damage " + std::to_string(i));
    PlanParts damaged = made;
    damages[i](damaged);
    ExpectRefused(call, damaged);
  }
}

std::vector<Damage> OfAny() {
  return {
      [](PlanParts& p) { p.valid_queries[1][3] = p.valid_queries[1][2]; },  // twice
      [](PlanParts& p) { p.valid_keys[1].push_back(279); },
      [](PlanParts& p) { p.valid_keys[1].push_back(300); },
      [](PlanParts& p) { p.valid_keys[0][0] = -1; },
      [](PlanParts& p) { std::swap(p.valid_keys[0][4], p.valid_keys[0][5]); },
      [](PlanParts& p) { p.valid_queries.pop_back(); },
      [](PlanParts& p) { p.valid_queries.emplace_back(); },
      [](PlanParts& p) { p.heads.emplace_back(); },
      [](PlanParts& p) { p.forests.emplace_back(); },
      [](PlanParts& p) { p.method = Method::kAuto; },
      [](PlanParts& p) { p.n_hashes = -1; },
      [](PlanParts& p) { p.n_hashes = 3; },
  };
}

std::vector<Damage> OfBlocks() {
  return {
      // Queries: in two blocks, in none, out of order, padded ones.
      [](PlanParts& p) { p.heads[6].query_order[0] = p.heads[6].query_order[1]; },
      [](PlanParts& p) { p.heads[6].query_order[0] = 55; },
      [](PlanParts& p) { p.heads[6].query_order[0] = -1; },
      [](PlanParts& p) { p.heads[6].query_order[0] = std::numeric_limits<std::int32_t>::min(); },
      [](PlanParts& p) { p.heads[6].query_order[0] = 60; },
      [](PlanParts& p) { p.heads[6].query_order.pop_back(); },
      [](PlanParts& p) { p.heads[6].query_order.push_back(55); },
      [](PlanParts& p) { p.heads[6].blocks.pop_back(); },
      [](PlanParts& p) { p.heads[6].blocks.erase(p.heads[6].blocks.begin() + 1); },
      [](PlanParts& p) { p.heads[6].blocks.erase(p.heads[6].blocks.begin()); },
      [](PlanParts& p) { p.heads[6].blocks.push_back(p.heads[6].blocks[1]); },
      [](PlanParts& p) { p.heads[6].blocks[1] = p.heads[6].blocks[0]; },
      [](PlanParts& p) { std::swap(p.heads[6].blocks[0], p.heads[6].blocks[1]); },
      [](PlanParts& p) { --p.heads[6].blocks[1].begin; },
      [](PlanParts& p) { ++p.heads[6].blocks[1].begin; },
      [](PlanParts& p) { p.heads[6].blocks[1].end = p.heads[6].blocks[1].begin; },
      [](PlanParts& p) { p.heads[6].blocks.clear(); },
      [](PlanParts& p) { p.heads[6].non_finite = true; },
      [](PlanParts& p) { p.heads[6].dense = true; },
      // A block that evaluates nothing.
      [](PlanParts& p) {
        p.heads[6].blocks[1].last_range = p.heads[6].blocks[1].first_range;
        p.heads[6].blocks[1].last_node = p.heads[6].blocks[1].first_node;
      },
      // Keys: in two ranges, in none, ranges that are empty or past the end.
      [](PlanParts& p) { ++p.heads[6].ranges[p.heads[6].blocks[1].first_range].begin; },
      [](PlanParts& p) { --p.heads[6].ranges[p.heads[6].blocks[1].first_range].end; },
      [](PlanParts& p) {
        KeyRange& range = p.heads[6].ranges[p.heads[6].blocks[1].first_range];
        range.end = range.begin;
      },
      [](PlanParts& p) { p.heads[6].ranges[p.heads[6].blocks[1].first_range].begin = -1; },
      [](PlanParts& p) { p.heads[6].ranges[p.heads[6].blocks[1].first_range].end = 281; },
      [](PlanParts& p) { p.heads[6].blocks[1].last_range = 1U << 31; },
      [](PlanParts& p) { p.heads[6].blocks[1].last_node = 1U << 31; },
      [](PlanParts& p) { p.heads[6].blocks[1].first_range = p.heads[6].blocks[1].last_range + 1; },
      // What these methods don't take.
      [](PlanParts& p) { p.is_causal = true; },
      [](PlanParts& p) { p.window = Window{3, 3}; },
      [](PlanParts& p) { p.has_attn_mask = true; },
  };
}

TEST(PlanStructure, OfDense) {
  const Call call = PaddedCall(Method::kDense);
  ExpectAllRefused(call, OfAny());
  ExpectAllRefused(call, {
                             [](PlanParts& p) { p.n_hashes = 1; },
                             [](PlanParts& p) { p.cluster_size = 1; },
                         });
}

TEST(PlanStructure, OfLsh) {
  const Call call = PaddedCall(Method::kLsh);
  ExpectAllRefused(call, OfAny());
  ExpectAllRefused(call, OfBlocks());
  ExpectAllRefused(call,
                   {
                       [](PlanParts& p) { p.n_hashes = 1; },
                       [](PlanParts& p) { p.n_hashes = 0; },
                       [](PlanParts& p) { p.n_hashes = std::numeric_limits<std::int64_t>::max(); },
                       [](PlanParts& p) { p.cluster_size = 0; },
                       [](PlanParts& p) { p.heads[6].key_order[0] = p.heads[6].key_order[1]; },
                       [](PlanParts& p) { p.heads[6].key_order[0] = 290; },  // padded
                       [](PlanParts& p) { p.heads[6].key_order.pop_back(); },
                       [](PlanParts& p) { std::swap(p.heads[6].ranges[0], p.heads[6].ranges[1]); },
                       // A block without keys, whose keys another one has too.
                       [](PlanParts& p) {
                         p.heads[6].blocks[0].last_range = 2;
                         p.heads[6].blocks[1].first_range = 2;
                       },
                       // A later round that is missing, or of another kind.
                       [](PlanParts& p) { p.heads[12] = {}; },
                       [](PlanParts& p) { p.heads[12].dense = true; },
                       [](PlanParts& p) { p.heads[4].non_finite = p.heads[12].non_finite = true; },
                       [](PlanParts& p) {
                         p.heads[12] = {};
                         p.heads[12].non_finite = true;
                       },
                       // Said to be dense, but of several clusters.
                       [](PlanParts& p) {
                         p.heads[4].dense = true;
                         p.heads[12] = {};
                         p.heads[12].dense = true;
                       },
                       // Nodes, which only `tree` has.
                       [](PlanParts& p) {
                         p.heads[6].nodes = {0};
                         p.heads[6].blocks[1].last_node = 1;
                       },
                   });
}

TEST(PlanStructure, OfTree) {
  const Call call = PaddedCall(Method::kTree);
  ExpectAllRefused(call, OfAny());
  ExpectAllRefused(call, OfBlocks());
  ASSERT_GT(PlanOf(call).forests[3].segments[0].roots, 1);
  ASSERT_FALSE(PlanOf(call).heads[6].nodes.empty());
  ExpectAllRefused(
      call, {
                [](PlanParts& p) { p.tolerance = kNaN; },
                [](PlanParts& p) { p.tolerance = -0.1; },
                [](PlanParts& p) { p.max_density = 0.0; },
                [](PlanParts& p) { p.cluster_size = 32; },
                // Keys of a tree.
                [](PlanParts& p) { p.forests[3].key_order[0] = p.forests[3].key_order[1]; },
                [](PlanParts& p) { p.forests[3].key_order[0] = 290; },  // padded
                [](PlanParts& p) { p.forests[3].key_order.pop_back(); },
                [](PlanParts& p) { p.forests[3].key_order.clear(); },
                [](PlanParts& p) { p.forests[3] = {}; },
                [](PlanParts& p) { --p.forests[3].segments[0].sinks; },
                [](PlanParts& p) { p.forests[3].segments[0].sinks = -1; },
                // Roots and children that leave keys out, or share some.
                [](PlanParts& p) { ++p.forests[3].nodes[0].begin; },
                [](PlanParts& p) { --p.forests[3].nodes[0].end; },
                [](PlanParts& p) { ++p.forests[3].nodes[0].end; },
                [](PlanParts& p) { --p.forests[3].nodes.back().end; },
                [](PlanParts& p) { ++p.forests[3].nodes.back().begin; },
                [](PlanParts& p) { std::swap(p.forests[3].nodes[0], p.forests[3].nodes[1]); },
                [](PlanParts& p) { p.forests[3].nodes.back().first_child = -1; },
                // A node in two places, or none.
                [](PlanParts& p) { p.heads[6].nodes[0] = p.heads[6].nodes[1]; },
                [](PlanParts& p) { p.heads[6].nodes[0] = -1; },
                [](PlanParts& p) { p.heads[6].nodes[0] = 1 << 30; },
                [](PlanParts& p) { --p.heads[6].blocks[1].last_node; },
                [](PlanParts& p) { --p.heads[6].blocks[1].first_node; },
                // An exact key under a node that stands for it too.
                [](PlanParts& p) {
                  p.heads[6].ranges.push_back({279, 280});
                  p.heads[6].blocks.back().last_range =
                      static_cast<std::uint32_t>(p.heads[6].ranges.size());
                },
                // Too many queries for the lanes of a block.
                [](PlanParts& p) {
                  p.heads[6].blocks[0].end = p.heads[6].blocks[1].end;
                  p.heads[6].blocks.erase(p.heads[6].blocks.begin() + 1);
                },
                // Two ways to be done at once.
                [](PlanParts& p) {
                  p.heads[6] = {};
                  p.heads[6].dense = p.heads[6].non_finite = true;
                },
                // A finite head without blocks, whose queries see keys.
                [](PlanParts& p) { p.heads[6] = {}; },
            });
}

TEST(PlanStructure, OfEntriesWithoutRows) {
  for (const Method method : {Method::kLsh, Method::kTree}) {
    for (const bool queries : {false, true}) {
      Call call = PaddedCall(method);
      (queries ? call.query_padding_mask : call.key_padding_mask) = Padding(queries ? 60 : 300, 0);
      const PlanParts made = PlanOf(call);
      EXPECT_TRUE(Attend(call, &made).SameBits(Attend(call)));
      PlanParts damaged = made;
      const std::size_t empty = 6;
      ASSERT_TRUE(damaged.heads[empty].blocks.empty());
      damaged.heads[empty].blocks.push_back({0, 1, 0, 0, 0, 0});
      ExpectRefused(call, damaged);
    }
  }
}

TEST(PlanStructure, HeadsMayShareRangesAndListNodesInAnyOrder) {
  const Call call = PaddedCall(Method::kTree);
  PlanParts made = PlanOf(call);
  for (HeadPlan& head : made.heads) {
    for (const QueryBlock& block : head.blocks) {
      std::reverse(head.nodes.begin() + block.first_node, head.nodes.begin() + block.last_node);
      std::reverse(head.ranges.begin() + block.first_range, head.ranges.begin() + block.last_range);
    }
  }
  EXPECT_TRUE(Close(call, Attend(call, &made), RunReference(call, &made), 4.0));
}

TEST(PlanStructure, AWrongOffsetPast32BitsIsFound) {
  // As if the lists had grown past what 32 bits count, and the offsets had begun anew.
  const Call call = PaddedCall(Method::kTree);
  PlanParts made = PlanOf(call);
  HeadPlan& head = made.heads[6];
  QueryBlock& last = head.blocks.back();
  last.last_range -= last.first_range;
  last.first_range = 0;
  ExpectRefused(call, made);
}

}  // namespace
}  // namespace smyrf::testing
