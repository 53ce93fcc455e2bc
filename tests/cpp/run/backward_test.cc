// Relative: gradients of every method against the float64 reference, on every instruction set.
// Exact: the same bits for any number of threads and whether the plan is given or made again.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "testing/gradients.h"
#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

Layout RandomOutputLayout(Random& random) {
  return random.Of({Layout::kContiguous, Layout::kBnhd, Layout::kGaps, Layout::kReversed});
}

void ExpectCloseGradients(Random& random, const Call& call, const PlanParts& plan) {
  const Layout layout = RandomOutputLayout(random);
  const Upstream upstream =
      RandomUpstream(random, call, random.Chance(0.5), RandomOutputLayout(random));
  const ExactGradients exact = ReferenceBackward(call, upstream, &plan);
  ForEachInstructionSet([&] {
    const Result result = Attend(call, &plan);
    const GradientTensors got = Backward(call, result, upstream, &plan, layout);
    ASSERT_TRUE(CloseGradients(call, got, exact, upstream));
    ASSERT_TRUE(got.query.GapsUntouched() && got.key.GapsUntouched() && got.value.GapsUntouched());
  });
}

void ExpectCloseGradients(Random& random, const Call& call) {
  ExpectCloseGradients(random, call, PlanOf(call));
}

TEST(Backward, DenseIsTheReferences) {
  Random random(300);
  for (int n = 0; n < 120 && !::testing::Test::HasFatalFailure(); ++n) {
    SCOPED_TRACE(n);
    ExpectCloseGradients(random, RandomDenseCall(random, 5e5));
  }
}

TEST(Backward, LshIsTheReferences) {
  Random random(301);
  for (int n = 0; n < 80 && !::testing::Test::HasFatalFailure(); ++n) {
    SCOPED_TRACE(n);
    ExpectCloseGradients(random, RandomLshCall(random, 5e5));
  }
}

TEST(Backward, TreeIsTheReferences) {
  Random random(305);
  int closed = 0;
  for (int n = 0; n < 30 && !::testing::Test::HasFatalFailure(); ++n) {
    SCOPED_TRACE(n);
    const Call call = RandomTreeCall(random, 5e5);
    for (const HeadPlan& head : PlanOf(call).heads) closed += head.nodes.empty() ? 0 : 1;
    ExpectCloseGradients(random, call);
  }
  EXPECT_GE(closed, 30);
}

TEST(Backward, TreeWithHeadsDoneAsDense) {
  // Of one key head's queries some as dense and some by blocks, of the other's all.
  Random random(306);
  Call call({1, 4, 2, 150, 300, 16, 8});
  FillSmooth(random, call);
  call.options.method = Method::kTree;
  call.key_padding_mask = Tensor(DType::kBool, {1, 1, 1, 300});
  call.key_padding_mask->FillRow(0, 0, 0, 1.0);
  for (std::int64_t j = 250; j < 300; ++j) call.key_padding_mask->set(0, 0, 0, j, 0.0);
  PlanParts plan = PlanOf(call);
  for (const HeadPlan& head : plan.heads) ASSERT_FALSE(head.dense || head.nodes.empty());
  for (std::size_t h = 1; h < 4; ++h) {
    plan.heads[h] = {};
    plan.heads[h].dense = true;
  }
  ExpectCloseGradients(random, call, plan);
}

void ExpectSameBits(Random& random, Call call) {
  const Upstream upstream = RandomUpstream(random, call, true);
  ForEachQuickInstructionSet([&] {
    call.options.num_threads = 1;
    const Result result = Attend(call);
    const GradientTensors one = Backward(call, result, upstream);
    for (const int threads : {2, 3, 0}) {
      call.options.num_threads = threads;
      ASSERT_TRUE(Backward(call, result, upstream).SameBits(one)) << call;
    }
    const PlanParts plan = PlanOf(call);
    ASSERT_TRUE(Backward(call, result, upstream, &plan).SameBits(one)) << call;
  });
}

TEST(Backward, DenseHasTheSameBits) {
  Random random(302);
  for (int n = 0; n < 30 && !::testing::Test::HasFatalFailure(); ++n) {
    ExpectSameBits(random, RandomDenseCall(random, 5e5));
  }
  // Many queries for few key heads, which are split into parts, and many key heads.
  for (const std::int64_t heads : {1, 12}) {
    Call call({1, 2 * heads, heads, 700, 90, 8, 8});
    call.FillNormal(random);
    call.options.is_causal = true;
    ExpectSameBits(random, call);
  }
}

TEST(Backward, LshHasTheSameBits) {
  Random random(303);
  for (int n = 0; n < 20 && !::testing::Test::HasFatalFailure(); ++n) {
    ExpectSameBits(random, RandomLshCall(random, 5e5));
  }
  for (const std::int64_t heads : {1, 9}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      Call call({1, heads, heads, 530, 140, 16, 16}, dtype);
      call.FillNormal(random);
      call.options.method = Method::kLsh;
      call.options.cluster_size = 10;
      ExpectSameBits(random, call);
    }
  }
}

TEST(Backward, TreeHasTheSameBits) {
  Random random(307);
  for (int n = 0; n < 10 && !::testing::Test::HasFatalFailure(); ++n) {
    ExpectSameBits(random, RandomTreeCall(random, 3e5));
  }
  for (const std::int64_t heads : {1, 6}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      Call call({1, heads, heads, 290, 700, 16, 16}, dtype);
      FillSmooth(random, call);
      call.options.method = Method::kTree;
      for (const HeadPlan& head : PlanOf(call).heads) ASSERT_FALSE(head.dense);
      ExpectSameBits(random, call);
    }
  }
}

TEST(Backward, RoundsOfLshAreAddedInOrderHoweverManyArePlannedAtOnce) {
  // More rounds than are planned at once where the caller has no plan.
  Random random(304);
  Call call({1, 2, 2, 40, 50, 4, 4}, DType::kFloat16);
  call.FillNormal(random);
  call.options.method = Method::kLsh;
  call.options.n_hashes = kMaxHashes;
  call.options.cluster_size = 5;
  const Upstream upstream = RandomUpstream(random, call, false);
  const Result result = Attend(call);
  const PlanParts plan = PlanOf(call);
  EXPECT_TRUE(Backward(call, result, upstream).SameBits(Backward(call, result, upstream, &plan)));
}

}  // namespace
}  // namespace smyrf::testing
