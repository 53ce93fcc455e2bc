// Exact: the same bits for any number of threads, for any history of calls, and for any way to ask.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "testing/bounds.h"
#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

void ExpectSameBitsOnThreads(Call call) {
  ForEachQuickInstructionSet([&] {
    call.options.num_threads = 1;
    const Result one = Attend(call);
    for (const int threads : {2, 3, 0}) {
      call.options.num_threads = threads;
      ASSERT_TRUE(Attend(call).SameBits(one)) << call;
    }
  });
}

TEST(Threads, DenseHasTheSameBits) {
  Random random(70);
  for (int n = 0; n < 60 && !::testing::Test::HasFatalFailure(); ++n) {
    ExpectSameBitsOnThreads(RandomDenseCall(random, 1e6));
  }
}

TEST(Threads, DenseSplitOverKeysHasTheSameBits) {
  Random random(71);
  for (const std::int64_t queries : {1, 2, 5, 64}) {
    Call call({1, 1, 1, queries, 9001, 16, 16});
    call.FillNormal(random);
    call.options.is_causal = queries == 5;
    ExpectSameBitsOnThreads(call);
  }
}

TEST(Threads, LshHasTheSameBits) {
  Random random(72);
  for (int n = 0; n < 20 && !::testing::Test::HasFatalFailure(); ++n) {
    ExpectSameBitsOnThreads(RandomLshCall(random, 1e6));
  }
  // Few heads and many: rounds of a head run apart or together.
  for (const std::int64_t heads : {1, 6}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      Call call({1, heads, heads, 130, 140, 16, 16}, dtype);
      call.FillNormal(random);
      call.options.method = Method::kLsh;
      call.options.cluster_size = 10;
      ExpectSameBitsOnThreads(call);
    }
  }
}

TEST(Threads, TreeHasTheSameBits) {
  Random random(77);
  for (int n = 0; n < 10 && !::testing::Test::HasFatalFailure(); ++n) {
    ExpectSameBitsOnThreads(RandomTreeCall(random, 3e5));
  }
  // Few heads and many: groups of heads run side by side, or blocks do.
  for (const std::int64_t heads : {1, 6}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      Call call({1, heads, heads, 230, 700, 16, 16}, dtype);
      FillSmooth(random, call);
      call.options.method = Method::kTree;
      ExpectSameBitsOnThreads(call);
      const PlanParts made = PlanOf(call);
      for (const HeadPlan& head : made.heads) ASSERT_FALSE(head.dense);
      ForEachQuickInstructionSet([&] {
        call.options.num_threads = 1;
        const Result one = Attend(call, &made);
        for (const int threads : {2, 3}) {
          call.options.num_threads = threads;
          ASSERT_TRUE(Attend(call, &made).SameBits(one)) << call;
        }
      });
    }
  }
}

TEST(Calls, ABatchEntryOfTreeHasTheBitsOfItsOwnCall) {
  // Random numbers depend on the seed only, and nothing is shared between batch entries.
  Random random(78);
  for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
    Call call({3, 4, 2, 210, 700, 16, 12}, dtype);
    FillSmooth(random, call);
    call.options.method = Method::kTree;
    call.options.tolerance = 0.1;
    const Result all = Attend(call);
    for (std::int64_t b = 0; b < 3; ++b) {
      Call one({1, 4, 2, 210, 700, 16, 12}, dtype);
      one.options = call.options;
      one.query.ForEach(
          [&](auto, auto... at) { one.query.set(0, at..., call.query.at(b, at...)); });
      one.key.ForEach([&](auto, auto... at) { one.key.set(0, at..., call.key.at(b, at...)); });
      one.value.ForEach(
          [&](auto, auto... at) { one.value.set(0, at..., call.value.at(b, at...)); });
      const Result alone = Attend(one);
      alone.out.ForEach(
          [&](auto, auto... at) { ASSERT_EQ(alone.out.at(0, at...), all.out.at(b, at...)) << b; });
      one.ForEachRow([&](auto, auto h, auto i) {
        ASSERT_EQ(alone.lse[one.Row(0, h, i)], all.lse[call.Row(b, h, i)]) << b;
      });
      for (const auto& head : alone.statistics.heads) ASSERT_FALSE(head.dense);
    }
  }
}

TEST(Calls, LeaveNothingBehind) {
  // Working memory is reused: a call between two equal ones must not change the second.
  Random random(73);
  std::vector<Call> calls;
  std::vector<Result> results;
  for (int n = 0; n < 40; ++n) {
    calls.push_back(n % 3 == 0   ? RandomDenseCall(random, 2e5)
                    : n % 3 == 1 ? RandomLshCall(random, 2e5)
                                 : RandomTreeCall(random, 2e5));
    results.push_back(Attend(calls.back()));
  }
  Call poison({1, 1, 1, 64, 200, 512, 512});
  poison.query.ForEach([&](auto... at) { poison.query.set(at..., kNaN); });
  poison.key.ForEach([&](auto... at) { poison.key.set(at..., kNaN); });
  poison.value.ForEach([&](auto... at) { poison.value.set(at..., kNaN); });
  for (int n = 0; n < 200; ++n) {
    const auto pick = static_cast<std::size_t>(random.Below(40));
    if (random.Chance(0.3)) {
      poison.options.num_threads = calls[pick].options.num_threads;
      (void)Attend(poison);
    }
    ASSERT_TRUE(Attend(calls[pick]).SameBits(results[pick])) << calls[pick];
  }
}

TEST(Calls, LseAndStatisticsAreOptional) {
  Random random(74);
  for (int n = 0; n < 60; ++n) {
    const Call call = n % 3 == 0   ? RandomDenseCall(random, 2e5)
                      : n % 3 == 1 ? RandomLshCall(random, 2e5)
                                   : RandomTreeCall(random, 2e5);
    const Result result = Attend(call);
    const Shape& s = call.shape;
    Tensor out(call.query.dtype(), {s.batch, s.query_heads, s.queries, s.value_depth});
    attention(call.arguments(), call.options, {out.mutable_view()});
    ASSERT_EQ(out.memory(), result.out.memory()) << call;
  }
}

TEST(Calls, LayoutsChangeNothing) {
  Random random(75);
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    Call call({2, 4, 2, 50, 160, 20, 24});
    call.FillNormal(random);
    call.options.method = method;
    if (method == Method::kTree) call.options.max_density = 0.5;
    const Result expected = Attend(call);
    for (const Layout layout :
         {Layout::kBnhd, Layout::kGaps, Layout::kReversed, Layout::kHeadsReversed}) {
      Call other(call.shape, DType::kFloat32, layout, layout, layout);
      other.options = call.options;
      other.query.ForEach([&](auto... at) { other.query.set(at..., call.query.at(at...)); });
      other.key.ForEach([&](auto... at) { other.key.set(at..., call.key.at(at...)); });
      other.value.ForEach([&](auto... at) { other.value.set(at..., call.value.at(at...)); });
      const Result result = Attend(other, nullptr, layout);
      EXPECT_EQ(result.lse, expected.lse);
      result.out.ForEach(
          [&](auto... at) { ASSERT_EQ(result.out.at(at...), expected.out.at(at...)); });
    }
  }
}

TEST(InstructionSets, AreListedForcedAndNamed) {
  const std::vector<std::string> names = instruction_sets();
  ASSERT_FALSE(names.empty());
  Random random(76);
  Call call({1, 1, 1, 3, 4, 5, 6});
  call.FillNormal(random);
  EXPECT_EQ(Attend(call).statistics.instruction_set, names.front());  // the best
  for (const std::string& name : names) {
    force_instruction_set(name);
    EXPECT_EQ(Attend(call).statistics.instruction_set, name);
  }
  EXPECT_THROW(force_instruction_set("Z80"), Error);
  EXPECT_EQ(Attend(call).statistics.instruction_set, names.back());  // the error changed nothing
  force_instruction_set("");
  EXPECT_EQ(Attend(call).statistics.instruction_set, names.front());
}

}  // namespace
}  // namespace smyrf::testing
