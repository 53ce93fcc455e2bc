// Exact and hostile: a plan carried out later, on other tensors, and where it does not fit.
#include <gtest/gtest.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "testing/bounds.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

/// What an attention call with a plan may leave out: the plan holds it.
Call WithoutWhatThePlanHolds(Call call) {
  Options options;
  options.scale = call.options.scale;
  options.enable_gqa = call.options.enable_gqa;
  options.num_threads = call.options.num_threads;
  call.options = options;
  return call;
}

TEST(Plan, CarriedOutLaterGivesTheSameBits) {
  Random random(120);
  for (int n = 0; n < 150; ++n) {
    const Call call = n % 2 == 0 ? RandomDenseCall(random, 1e5) : RandomLshCall(random, 1e5);
    SCOPED_TRACE(::testing::Message() << call);
    const PlanParts made = PlanOf(call);
    const Result expected = Attend(call);
    ASSERT_TRUE(Attend(call, &made).SameBits(expected));  // options that agree
    const Result bare = Attend(WithoutWhatThePlanHolds(call), &made);
    ASSERT_TRUE(bare.SameBits(expected));  // options left out
    ASSERT_EQ(bare.statistics.method, made.method);
    ASSERT_EQ(bare.statistics.planning_seconds, 0.0);
    Call unpadded = WithoutWhatThePlanHolds(call);
    unpadded.key_padding_mask.reset();
    unpadded.query_padding_mask.reset();
    ASSERT_TRUE(Attend(unpadded, &made).SameBits(expected));
  }
}

/// Everything that a plan decides.
void ExpectEqual(const PlanParts& a, const PlanParts& b) {
  ASSERT_EQ(a.method, b.method);
  ASSERT_EQ(a.reason, b.reason);
  ASSERT_EQ(std::tie(a.batch, a.query_heads, a.key_heads, a.queries, a.keys, a.depth),
            std::tie(b.batch, b.query_heads, b.key_heads, b.queries, b.keys, b.depth));
  ASSERT_EQ(std::tie(a.n_hashes, a.cluster_size, a.tolerance, a.max_density, a.seed, a.scale),
            std::tie(b.n_hashes, b.cluster_size, b.tolerance, b.max_density, b.seed, b.scale));
  ASSERT_EQ(std::tie(a.valid_queries, a.valid_keys), std::tie(b.valid_queries, b.valid_keys));
  ASSERT_EQ(std::tie(a.is_causal, a.has_attn_mask, a.dense_below),
            std::tie(b.is_causal, b.has_attn_mask, b.dense_below));
  ASSERT_EQ(a.forests.size(), b.forests.size());
  for (std::size_t i = 0; i < a.forests.size(); ++i) {
    const KeyForest& x = a.forests[i];
    const KeyForest& y = b.forests[i];
    ASSERT_EQ(x.key_order, y.key_order);
    ASSERT_EQ(std::tie(x.query_basis, x.key_basis, x.directions, x.profiles),
              std::tie(y.query_basis, y.key_basis, y.directions, y.profiles));
    ASSERT_EQ(x.nodes.size(), y.nodes.size());
    for (std::size_t n = 0; n < x.nodes.size(); ++n) {
      const Node& p = x.nodes[n];
      const Node& q = y.nodes[n];
      ASSERT_EQ(std::tie(p.begin, p.end, p.first_child, p.child_count),
                std::tie(q.begin, q.end, q.first_child, q.child_count));
    }
  }
  ASSERT_EQ(a.heads.size(), b.heads.size());
  for (std::size_t i = 0; i < a.heads.size(); ++i) {
    const HeadPlan& x = a.heads[i];
    const HeadPlan& y = b.heads[i];
    ASSERT_EQ(std::tie(x.query_order, x.key_order, x.nodes, x.dense, x.non_finite),
              std::tie(y.query_order, y.key_order, y.nodes, y.dense, y.non_finite));
    ASSERT_EQ(std::tie(x.expected_error, x.expected_lse_error, x.expected_work),
              std::tie(y.expected_error, y.expected_lse_error, y.expected_work));
    ASSERT_EQ(x.ranges.size(), y.ranges.size());
    for (std::size_t r = 0; r < x.ranges.size(); ++r) {
      ASSERT_EQ(std::tie(x.ranges[r].begin, x.ranges[r].end),
                std::tie(y.ranges[r].begin, y.ranges[r].end));
    }
    ASSERT_EQ(x.blocks.size(), y.blocks.size());
    for (std::size_t j = 0; j < x.blocks.size(); ++j) {
      const QueryBlock& p = x.blocks[j];
      const QueryBlock& q = y.blocks[j];
      ASSERT_EQ(std::tie(p.begin, p.end, p.first_range, p.last_range, p.first_node, p.last_node),
                std::tie(q.begin, q.end, q.first_range, q.last_range, q.first_node, q.last_node));
    }
  }
}

TEST(Plan, ThatACallKeepsIsTheOneMadeApart) {
  Random random(129);
  std::size_t blocks = 0;  // of `tree`, whose heads may go dense
  for (int n = 0; n < 60; ++n) {
    const Call call = n % 3 == 0   ? RandomDenseCall(random, 1e5)
                      : n % 3 == 1 ? RandomLshCall(random, 1e5)
                                   : RandomTreeCall(random, 1e5);
    SCOPED_TRACE(::testing::Message() << call);
    Plan kept;
    const Result result = Attend(call, nullptr, Layout::kContiguous, &kept);
    ASSERT_TRUE(result.SameBits(Attend(call)));
    ExpectEqual(Unpack(kept), PlanOf(call));
    if (kept.info().method == Method::kTree) {
      for (const HeadPlan& head : Unpack(kept).heads) blocks += head.blocks.size();
    }
    Plan untouched;
    (void)Attend(call, &kept, Layout::kContiguous, &untouched);
    ASSERT_EQ(untouched.info().batch, 0);
  }
  EXPECT_GT(blocks, 0U);
}

TEST(Plan, OrNoneSecondsAreThoseOfBlocks) {
  // On one thread they add up to no more than the execution, whatever planning took.
  Random random(131);
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    for (const double max_density : {0.5, 1.0}) {  // all heads sparse, all dense
      Call call({2, 3, 3, 200, 300, 16, 16});
      call.FillNormal(random);
      call.options.method = method;
      call.options.num_threads = 1;
      if (method == Method::kTree) call.options.tolerance = max_density < 1.0 ? 0.5 : 0.0;
      if (method == Method::kTree && max_density < 1.0) call.options.max_density = max_density;
      const PlanParts made = PlanOf(call);
      for (const PlanParts* plan : {static_cast<const PlanParts*>(nullptr), &made}) {
        const Statistics statistics = Attend(call, plan).statistics;
        double seconds = 0.0;
        for (const Statistics::Head& head : statistics.heads) {
          EXPECT_GT(head.seconds, 0.0) << call;
          EXPECT_EQ(head.planning_seconds > 0.0, method == Method::kTree && plan == nullptr);
          EXPECT_EQ(head.dense, method == Method::kTree && max_density == 1.0) << call;
          seconds += head.seconds;
        }
        EXPECT_LE(seconds, statistics.execution_seconds) << call;
      }
    }
  }
}

TEST(Plan, OfAutoTakesTheOptionsItWasMadeWith) {
  Random random(128);
  Call call({1, 2, 2, 10, 20, 8, 3});
  call.FillNormal(random);
  call.options.seed = 4;
  call.options.tolerance = 0.1;
  const PlanParts made = PlanOf(call);
  ASSERT_EQ(made.method, Method::kDense);
  EXPECT_TRUE(Attend(call, &made).SameBits(Attend(call)));
}

TEST(Plan, ServesOtherTensorsAndTypes) {
  Random random(121);
  for (int n = 0; n < 60; ++n) {
    const Call call = n % 2 == 0 ? RandomDenseCall(random, 1e5) : RandomLshCall(random, 1e5);
    const PlanParts made = PlanOf(call);
    Call other(call.shape, random.Of({DType::kFloat32, DType::kFloat16, DType::kBFloat16}));
    other.FillNormal(random);
    other.options = call.options;
    other.attn_mask = call.attn_mask;
    other.attn_mask_rank = call.attn_mask_rank;
    other.key_padding_mask = call.key_padding_mask;
    other.query_padding_mask = call.query_padding_mask;
    SCOPED_TRACE(::testing::Message() << other);
    ASSERT_TRUE(Close(other, Attend(other, &made), RunReference(other, &made), 5.0));
  }
}

TEST(Plan, OfNonFiniteRowsStaysNaN) {
  // The plan found that it could not order a head; finite tensors later do not change that.
  Random random(122);
  Call call({1, 2, 2, 30, 40, 8, 3});
  call.FillNormal(random);
  call.options.method = Method::kLsh;
  Call spoiled = call;
  spoiled.query.set(0, 1, 3, 3, kNaN);
  const PlanParts made = PlanOf(spoiled);
  const Result result = Attend(call, &made);
  EXPECT_TRUE(result.statistics.heads[1].non_finite);
  result.out.ForEach([&](auto b, auto h, auto i, auto c) {
    ASSERT_EQ(std::isnan(result.out.at(b, h, i, c)), h == 1);
  });
}

TEST(Plan, KeepsNoRows) {
  Random random(123);
  Call call({1, 1, 1, 30, 40, 8, 3});
  call.FillNormal(random);
  EXPECT_TRUE(PlanOf(call).heads.empty());                      // dense ranges are implicit
  call.key_padding_mask = Tensor(DType::kBool, {1, 1, 1, 40});  // all True
  EXPECT_TRUE(PlanOf(call).valid_keys.empty());
}

/// attention and reference both refuse `call` with `made`, and write nothing.
void ExpectRefused(const Call& call, const PlanParts& plan_parts, ErrorKind kind,
                   const std::vector<std::string>& parts) {
  const Plan made = Pack(PlanParts(plan_parts));
  const Shape& s = call.shape;
  Tensor out(call.query.dtype(), {s.batch, s.query_heads, s.queries, s.value_depth});
  const std::vector<std::byte> before = out.memory();
  try {
    attention(call.arguments(), call.options, {out.mutable_view()}, &made);
    ADD_FAILURE() << "taken: " << call;
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.kind(), kind) << message;
    for (const std::string& part : parts) {
      EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' in: " << message;
    }
  }
  EXPECT_EQ(out.memory(), before);
  EXPECT_THROW((void)RunReference(call, &made), Error);
}

TEST(Plan, RefusesOtherShapes) {
  Random random(124);
  for (const Method method : {Method::kDense, Method::kLsh}) {
    const Shape planned{2, 4, 2, 10, 20, 8, 3};
    Call call(planned);
    call.FillNormal(random);
    call.options.method = method;
    const PlanParts made = PlanOf(call);
    const auto refuse = [&](const std::string& name, const Shape& shape) {
      Call other(shape);
      other.FillNormal(random);
      other.options.enable_gqa = true;
      ExpectRefused(other, made, ErrorKind::kValue, {"plan: was made for " + name});
    };
    refuse("batch", {1, 4, 2, 10, 20, 8, 3});
    refuse("query heads", {2, 2, 2, 10, 20, 8, 3});
    refuse("key heads", {2, 4, 4, 10, 20, 8, 3});
    refuse("Nq", {2, 4, 2, 11, 20, 8, 3});
    refuse("Nk", {2, 4, 2, 10, 21, 8, 3});
    refuse("D", {2, 4, 2, 10, 20, 9, 3});
    Call wider({2, 4, 2, 10, 20, 8, 5});  // Dv is no part of a plan
    wider.FillNormal(random);
    EXPECT_NO_THROW((void)Attend(wider, &made));
  }
}

TEST(Plan, RefusesWhatWasTamperedWith) {
  Random random(90);
  Call call({1, 2, 1, 100, 200, 8, 8});
  call.FillNormal(random);
  const auto expect = [&](const std::function<void(PlanParts&)>& spoil) {
    PlanParts made = PlanOf(call);
    spoil(made);
    try {
      Attend(call, &made);
      FAIL() << "took a damaged plan";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("damaged"), std::string::npos) << error.what();
    }
  };
  call.options.method = Method::kLsh;
  call.options.cluster_size = 10;
  expect([](PlanParts& p) { p.heads[0].key_order[0] = 1 << 28; });
  expect([](PlanParts& p) { p.heads[1].query_order[3] = -1; });
  expect([](PlanParts& p) { p.heads.pop_back(); });
  expect([](PlanParts& p) { p.n_hashes = 64; });
  expect([](PlanParts& p) { p.n_hashes = std::numeric_limits<std::int64_t>::max(); });
  expect([](PlanParts& p) { p.method = Method::kAuto; });
  expect([](PlanParts& p) { p.method = std::bit_cast<Method>(std::uint8_t{4}); });
  expect([](PlanParts& p) { p.heads[2].ranges[0].end = 201; });
  expect([](PlanParts& p) { p.heads[2].blocks[0].last_range = 1 << 20; });
  expect([](PlanParts& p) { p.valid_keys = {{0, 1}, {2}}; });
  call.options.cluster_size.reset();
  call.options.method = Method::kDense;
  expect([](PlanParts& p) { p.heads.emplace_back(); });
  call.options.method = Method::kTree;
  call.options.tolerance = 0.9;
  call.options.max_density = 0.9;  // not dense
  const PlanParts made = PlanOf(call);
  ASSERT_FALSE(made.heads[0].blocks.empty());
  expect([](PlanParts& p) { p.forests.clear(); });
  expect([](PlanParts& p) { p.forests[0].key_order[5] = 200; });
  expect([](PlanParts& p) { p.forests[0].nodes[0].end = 1000; });
  expect([](PlanParts& p) { p.forests[0].nodes.back().child_count = 2; });
  expect([](PlanParts& p) { p.forests[0].query_basis.pop_back(); });
  expect([](PlanParts& p) { p.heads[0].nodes.assign(p.heads[0].nodes.size() + 1, 9999); });
  expect([](PlanParts& p) { p.heads[0].blocks[0].end = 99; });
}

TEST(Plan, WhoseHeadIsDenseMeetsNoKeys) {
  Call call({2, 2, 2, 5, 0, 4, 3});
  call.options.method = Method::kTree;
  PlanParts made = PlanOf(call);
  made.heads[3].dense = true;
  for (const float x : Attend(call, &made).lse)
    EXPECT_EQ(x, -std::numeric_limits<float>::infinity());
}

TEST(Plan, RefusesNodesThatAreNoTree) {
  Random random(127);
  Call call({1, 1, 1, 40, 700, 8, 3});
  call.FillNormal(random);
  call.options.method = Method::kTree;
  call.options.max_density = 0.5;
  const PlanParts made = PlanOf(call);
  const auto refuse = [&](const std::function<void(KeyForest&)>& damage) {
    PlanParts damaged = made;
    damage(damaged.forests[0]);
    ExpectRefused(call, damaged, ErrorKind::kValue, {"plan: its ", " are damaged"});
  };
  ASSERT_GT(made.forests[0].segments[0].roots, 1);
  ASSERT_GT(made.forests[0].nodes[1].child_count, 0);
  EXPECT_NO_THROW((void)Attend(call, &made));
  // No root, fewer, more; a node that is nobody's child; children of two, of nobody, and none.
  refuse([](KeyForest& tree) { tree.segments[0].roots = 0; });
  refuse([](KeyForest& tree) { --tree.segments[0].roots; });
  refuse([](KeyForest& tree) { ++tree.segments[0].roots; });
  refuse([](KeyForest& tree) { tree.nodes.push_back(tree.nodes.back()); });
  refuse([](KeyForest& tree) { tree.nodes.pop_back(); });
  refuse([](KeyForest& tree) { tree.nodes[1].first_child = tree.nodes[0].first_child; });
  refuse([](KeyForest& tree) { ++tree.nodes[1].first_child; });
  refuse([](KeyForest& tree) { tree.nodes[1].first_child = 0; });
  refuse([](KeyForest& tree) { tree.nodes[1].child_count = 0; });
  refuse([](KeyForest& tree) { tree.nodes[1].child_count = -1; });
  refuse([](KeyForest& tree) { tree.nodes[1].end = tree.nodes[1].begin; });
  refuse([](KeyForest& tree) { tree.nodes[1].end = 701; });
  refuse([](KeyForest& tree) { tree.segments[0].sinks = 701; });
  refuse([](KeyForest& tree) { tree.key_basis.pop_back(); });
  refuse([](KeyForest& tree) { tree.directions.pop_back(); });
  refuse([](KeyForest& tree) { tree.profiles.pop_back(); });
}

TEST(Plan, RefusesOtherOptions) {
  Random random(125);
  Call call({2, 2, 2, 10, 20, 8, 3});
  call.FillNormal(random);
  Call causal = call;
  causal.options.is_causal = true;
  causal.options.window = Window{4, -1};
  const PlanParts of_causal = PlanOf(causal);
  Call lsh = call;
  lsh.options.method = Method::kLsh;
  lsh.options.n_hashes = 3;
  lsh.options.cluster_size = 4;
  lsh.options.seed = 5;
  const PlanParts of_lsh = PlanOf(lsh);

  const auto refuse = [&](const PlanParts& made, const std::string& name,
                          const std::function<void(Options&)>& set) {
    Call other = call;
    set(other.options);
    ExpectRefused(other, made, ErrorKind::kValue, {name + ": ", "plan"});
  };
  refuse(of_causal, "method", [](Options& options) { options.method = Method::kLsh; });
  refuse(of_lsh, "method", [](Options& options) { options.method = Method::kDense; });
  refuse(of_lsh, "n_hashes", [](Options& options) { options.n_hashes = 4; });
  refuse(of_lsh, "cluster_size", [](Options& options) { options.cluster_size = 5; });
  refuse(of_lsh, "seed", [](Options& options) { options.seed = 6; });
  refuse(of_lsh, "is_causal", [](Options& options) { options.is_causal = true; });
  refuse(of_lsh, "window", [](Options& options) { options.window = Window{4, -1}; });
  refuse(of_lsh, "scale", [](Options& options) { options.scale = -1.0; });
  refuse(of_causal, "window", [](Options& options) { options.window = Window{5, -1}; });
  refuse(of_causal, "window", [](Options& options) { options.window = Window{4, 0}; });
  refuse(of_causal, "n_hashes", [](Options& options) { options.n_hashes = 4; });
  refuse(of_causal, "cluster_size", [](Options& options) { options.cluster_size = 4; });
  refuse(of_causal, "seed", [](Options& options) {
    options.method = Method::kDense;
    options.seed = 4;
  });
  for (const double tolerance : {-1.0, 1.0, std::numeric_limits<double>::quiet_NaN()}) {
    Call other = call;
    other.options.tolerance = tolerance;
    ExpectRefused(other, PlanOf(call), ErrorKind::kValue, {"tolerance: got"});
  }
  refuse(PlanOf(call), "is_causal", [](Options& options) { options.is_causal = true; });
  refuse(PlanOf(call), "window", [](Options& options) { options.window = Window{4, -1}; });
}

TEST(Plan, RefusesOtherMasks) {
  Random random(126);
  for (const Method method : {Method::kDense, Method::kLsh}) {
    Call call({2, 2, 2, 10, 20, 8, 3});
    call.FillNormal(random);
    call.options.method = method;
    const auto mask = [](std::int64_t length, std::int64_t padded) {
      Tensor result(DType::kBool, {1, 1, 2, length});
      result.set(0, 0, 1, padded, 0.0);  // all others are True
      return result;
    };
    Call padded = call;
    padded.key_padding_mask = mask(20, 19);
    padded.query_padding_mask = mask(10, 9);
    const PlanParts made = PlanOf(padded);
    EXPECT_TRUE(Attend(call, &made).SameBits(Attend(padded)));

    Call other = call;
    other.key_padding_mask = mask(20, 18);
    ExpectRefused(other, made, ErrorKind::kValue, {"key_padding_mask: ", "plan"});
    ExpectRefused(other, PlanOf(call), ErrorKind::kValue, {"key_padding_mask: ", "plan"});
    other = call;
    other.query_padding_mask = mask(10, 8);
    ExpectRefused(other, made, ErrorKind::kValue, {"query_padding_mask: ", "plan"});
    ExpectRefused(other, PlanOf(call), ErrorKind::kValue, {"query_padding_mask: ", "plan"});
    if (method == Method::kLsh) {
      other = call;
      AddRandomMask(random, other);
      ExpectRefused(other, made, ErrorKind::kUnsupported, {"attn_mask: ", "lsh", "dense"});
    }
  }
}

}  // namespace
}  // namespace smyrf::testing
