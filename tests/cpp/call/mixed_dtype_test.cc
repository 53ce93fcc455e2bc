// Exact: queries of one dtype over keys and values of another, every method; gradients refuse them.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "smyrf/error.h"
#include "testing/bounds.h"
#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

constexpr Shape kShape{1, 4, 2, 140, 170, 24, 20};

Call MixedCall(DType query, DType key, Method method) {
  Random random(11);
  Call call(kShape, key);
  call.query = Tensor(query, {1, 4, 140, 24}, Layout::kBnhd);
  call.FillNormal(random);
  call.options.method = method;
  if (method == Method::kTree) call.options.tolerance = 0.0;
  return call;
}

TEST(MixedDtype, EveryMethodGivesWhatTheReferenceGives) {
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    for (const DType key : {DType::kFloat16, DType::kBFloat16}) {
      const Call call = MixedCall(DType::kFloat32, key, method);
      ForEachInstructionSet([&] {
        const PlanParts made = PlanOf(call);
        const Exact exact = RunReference(call, &made);
        const double merges = static_cast<double>(made.rounds()) + 4.0;
        ASSERT_TRUE(Close(call, Attend(call, &made), exact, merges)) << call;
        ASSERT_TRUE(Close(call, Attend(call), exact, merges)) << call;
      });
    }
  }
}

TEST(MixedDtype, TreeSummarises) {
  for (const DType key : {DType::kFloat16, DType::kBFloat16}) {
    Random random(12);
    Call call({1, 4, 2, 140, 400, 24, 20}, key);
    call.query = Tensor(DType::kFloat32, {1, 4, 140, 24});
    call.FillNormal(random);
    call.options.method = Method::kTree;
    call.options.max_density = 0.4;
    const Plan made = plan(call.arguments(), call.options);
    const Exact exact = RunReference(call, &made);
    ASSERT_TRUE(Close(call, Attend(call, &made), exact, 4.0)) << call;
    const Result result = Attend(call);
    const Statistics expected = estimate(call.arguments(), call.options);
    for (std::size_t head = 0; head < 4; ++head) {
      EXPECT_LT(result.statistics.heads[head].density, 0.5);
      EXPECT_EQ(expected.heads[head].expected_error, result.statistics.heads[head].expected_error);
    }
  }
}

TEST(MixedDtype, FewQueriesOverALongCache) {
  for (const DType key : {DType::kFloat16, DType::kBFloat16}) {
    for (const std::int64_t queries : {1, 3, 60}) {
      Random random(13);
      Call call({1, 2, 1, queries, 5000, 16, 16}, key);
      call.query = Tensor(DType::kFloat32, {1, 2, queries, 16});
      call.FillNormal(random);
      call.options.method = Method::kDense;
      ForEachInstructionSet(
          [&] { ASSERT_TRUE(Close(call, Attend(call), RunReference(call), 4.0)) << call; });
    }
  }
}

TEST(MixedDtype, NarrowQueriesOverWideKeys) {
  const Call call = MixedCall(DType::kBFloat16, DType::kFloat32, Method::kDense);
  ASSERT_TRUE(Close(call, Attend(call), RunReference(call), 4.0)) << call;
}

std::string Refusal(const Call& call) {
  const Tensor out(call.query.dtype(), {1, 4, 140, 20});
  Tensor grad_query(call.query.dtype(), {1, 4, 140, 24});
  Tensor grad_key(call.key.dtype(), {1, 2, 170, 24});
  Tensor grad_value(call.value.dtype(), {1, 2, 170, 20});
  std::vector<float> lse(call.rows());
  try {
    attention_backward(
        call.arguments(), call.options, out.view(),
        Contiguous<const void>(lse.data(), DType::kFloat32, {1, 4, 140}), out.view(), {},
        {grad_query.mutable_view(), grad_key.mutable_view(), grad_value.mutable_view()});
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(MixedDtype, GradientsNeedOneDtype) {
  EXPECT_EQ(Refusal(MixedCall(DType::kFloat32, DType::kFloat16, Method::kDense)),
            "key: got dtype float16, expected float32 like query; convert one of them");
}

TEST(MixedDtype, KeyAndValueHaveOneDtype) {
  Call call = MixedCall(DType::kFloat32, DType::kFloat16, Method::kDense);
  call.value = Tensor(DType::kFloat32, {1, 2, 170, 20});
  try {
    Attend(call);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "value: got dtype float32, expected float16 like key; convert one of them");
  }
}

}  // namespace
}  // namespace smyrf::testing
