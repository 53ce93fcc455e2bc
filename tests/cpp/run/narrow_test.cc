// Approximate: calls with narrow products against the float64 reference, within the error that
// their statistics expect; and relative, where they must be float32.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "simd/narrow.h"
#include "testing/call.h"
#include "testing/instruction_sets.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

bool IsNarrow(Precision precision) { return kernels::HasPrecision(precision); }

Call CallOf(const Shape& shape, Precision precision, DType dtype = DType::kFloat32) {
  Random random(7);
  Call call(shape, dtype, Layout::kContiguous, Layout::kContiguous, Layout::kContiguous);
  call.FillNormal(random);
  call.options.method = Method::kDense;
  call.options.precision = precision;
  call.options.num_threads = 1;
  return call;
}

const Shape kPlain{1, 2, 2, 300, 310, 64, 64};

/// Rows that see something: relative error of out, RMS error of lse by head, at most `factor` times
/// what is expected of the head; other rows are exactly 0.
::testing::AssertionResult WithinExpected(const Call& call, const Result& result, double factor) {
  const Exact exact = RunReference(call);
  const Shape& s = call.shape;
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.query_heads; ++h) {
      const auto& head = result.statistics.heads[static_cast<std::size_t>(b * s.query_heads + h)];
      double errors = 0.0;
      double squares = 0.0;
      double lse_errors = 0.0;
      double rows = 0.0;
      double spread = 0.0;
      for (std::int64_t i = 0; i < s.queries; ++i) {
        const std::size_t row = call.Row(b, h, i);
        if (call.SeesNothing(b, h, i)) {
          for (std::int64_t c = 0; c < s.value_depth; ++c) {
            if (result.out.at(b, h, i, c) != 0.0) return ::testing::AssertionFailure() << "not 0";
          }
          if (result.lse[row] != -std::numeric_limits<float>::infinity()) {
            return ::testing::AssertionFailure() << "lse is not -inf";
          }
          continue;
        }
        rows += 1.0;
        lse_errors += std::pow(result.lse[row] - exact.lse[row], 2);
        for (std::int64_t c = 0; c < s.value_depth; ++c) {
          const double expected =
              exact
                  .out[row * static_cast<std::size_t>(s.value_depth) + static_cast<std::size_t>(c)];
          errors += std::pow(result.out.at(b, h, i, c) - expected, 2);
          squares += expected * expected;
        }
      }
      if (rows == 0.0) continue;
      spread = std::sqrt(errors / squares);
      const double lse = std::sqrt(lse_errors / rows);
      const double rounding = 2.0 * UnitRoundoff(call.query.dtype()) + 2e-5;
      if (!(spread <= factor * head.expected_error + rounding) ||
          !(lse <= factor * head.expected_lse_error + 2e-3)) {
        return ::testing::AssertionFailure()
               << "error " << spread << " lse " << lse << " expected " << head.expected_error << " "
               << head.expected_lse_error << " head " << h << " of " << call;
      }
    }
  }
  return ::testing::AssertionSuccess();
}

TEST(NarrowCalls, AreAsCloseAsExpected) {
  Random random(11);
  int narrow = 0;
  ForEachInstructionSet([&] {
    if (!IsNarrow(Precision::kInt8)) return;
    for (int n = 0; n < 60; ++n) {
      Call call = RandomDenseCall(random, 3e6);
      if (call.options.scale == 0.0) call.options.scale = 0.3;
      Shape shape = call.shape;
      shape.batch = std::min<std::int64_t>(shape.batch, 2);
      shape.key_heads = 1;
      shape.query_heads = random.Between(1, 2);
      shape.queries = random.Between(128, 200);
      shape.keys = random.Between(256, 400);
      shape.depth = std::min<std::int64_t>(shape.depth, 128);
      shape.value_depth = std::min<std::int64_t>(shape.value_depth, 65);
      Call wide(shape, call.query.dtype(), Layout::kBnhd, Layout::kGaps, Layout::kReversed);
      wide.FillNormal(random);
      wide.options = call.options;
      wide.options.method = Method::kDense;
      wide.options.enable_gqa = true;
      wide.options.precision = random.Of({Precision::kInt8, Precision::kInt16});
      AddRandomPadding(random, wide);
      if (random.Chance(0.3)) AddRandomMask(random, wide);
      const Result result = Attend(wide);
      for (const auto& head : result.statistics.heads) {
        narrow += head.precision == wide.options.precision ? 1 : 0;
      }
      ASSERT_TRUE(WithinExpected(wide, result, 2.5)) << n;
      wide.options.num_threads = 3;
      ASSERT_TRUE(result.SameBits(Attend(wide)));
    }
  });
  if (IsNarrow(Precision::kInt8)) {
    EXPECT_GE(narrow, 40);
  }
}

TEST(NarrowCalls, OnlyWhereTheyPay) {
  const auto precision_of = [](std::int64_t queries, std::int64_t keys) {
    const Shape shape{1, 1, 1, queries, keys, 16, 16};
    return Attend(CallOf(shape, Precision::kInt8)).statistics.heads.front().precision;
  };
  const Precision some = IsNarrow(Precision::kInt8) ? Precision::kInt8 : Precision::kFloat32;
  EXPECT_EQ(precision_of(128, 256), some);
  EXPECT_EQ(precision_of(127, 256), Precision::kFloat32);
  EXPECT_EQ(precision_of(128, 255), Precision::kFloat32);
}

TEST(NarrowCalls, AutoTakesWhatTheToleranceAllows) {
  Call call = CallOf(kPlain, Precision::kAuto);
  const Result dense = Attend(call);
  EXPECT_EQ(dense.statistics.heads.front().precision, Precision::kFloat32);
  call.options.method = Method::kAuto;
  double last = 1.0;
  int kinds = 0;
  Precision before = Precision::kAuto;
  for (const double tolerance : {0.2, 0.05, 0.02, 0.005, 0.0021, 0.001, 0.0}) {
    call.options.tolerance = tolerance;
    const Result result = Attend(call);
    for (const auto& head : result.statistics.heads) {
      EXPECT_LE(head.expected_error, tolerance);
      EXPECT_LE(head.expected_lse_error, tolerance);
    }
    EXPECT_LE(result.statistics.heads.front().expected_error, last);
    last = result.statistics.heads.front().expected_error;
    kinds += result.statistics.heads.front().precision != before ? 1 : 0;
    before = result.statistics.heads.front().precision;
    EXPECT_TRUE(WithinExpected(call, result, 2.5));
  }
  EXPECT_TRUE(Attend(call).SameBits(dense));
  if (IsNarrow(Precision::kInt8) && IsNarrow(Precision::kInt16)) {
    EXPECT_EQ(kinds, 3);
  }
}

TEST(NarrowCalls, HostileRows) {
  const auto check = [](const char* what, const auto& spoil, double factor = 2.5) {
    SCOPED_TRACE(what);
    for (const Precision precision : {Precision::kInt8, Precision::kInt16}) {
      Call call = CallOf(kPlain, precision);
      spoil(call);
      const Result result = Attend(call);
      EXPECT_TRUE(WithinExpected(call, result, factor));
    }
  };
  const auto scaled = [](Tensor& tensor, std::int64_t row, double factor) {
    for (std::int64_t c = 0; c < 64; ++c) {
      tensor.set(0, 0, row, c, factor * tensor.at(0, 0, row, c));
    }
  };
  check("an outlier channel", [](Call& call) {
    for (std::int64_t j = 0; j < 310; ++j) call.key.set(0, 0, j, 5, 30.0);
  });
  // All pairs have the same roundings, which are not independent where rows are parallel.
  check(
      "constant rows",
      [](Call& call) {
        for (std::int64_t j = 0; j < 310; ++j) call.key.FillRow(0, 0, j, 0.7);
        for (std::int64_t i = 0; i < 300; ++i) call.query.FillRow(0, 0, i, -0.4);
      },
      6.0);
  check("zeros", [](Call& call) {
    for (std::int64_t i = 0; i < 300; i += 3) call.query.FillRow(0, 0, i, 0.0);
    for (std::int64_t j = 0; j < 310; j += 2) call.key.FillRow(0, 1, j, 0.0);
  });
  check("subnormal rows", [](Call& call) {
    for (std::int64_t j = 0; j < 310; j += 2) call.key.FillRow(0, 0, j, 1e-42);
    for (std::int64_t i = 0; i < 300; i += 2) call.query.FillRow(0, 0, i, 1e-39);
  });
  check("a sink of small norm", [&](Call& call) { scaled(call.key, 0, 1e-3); });
  check("one key of large norm", [&](Call& call) { scaled(call.key, 7, 12.0); });
  check("huge values", [](Call& call) {
    for (std::int64_t j = 0; j < 310; ++j) call.value.FillRow(0, 0, j, 1e36);
  });
}

TEST(NarrowCalls, RowsOutOfRangeAreFloat32) {
  for (const double bad : {kNaN, static_cast<double>(kInfinity), 1e20}) {
    for (const bool in_key : {true, false}) {
      Call call = CallOf({1, 2, 1, 300, 310, 64, 64}, Precision::kInt8);
      call.options.enable_gqa = true;
      (in_key ? call.key : call.query).set(0, 0, 200, 3, bad);
      const Result result = Attend(call);
      EXPECT_EQ(result.statistics.heads.front().precision, Precision::kFloat32);
      call.options.precision = Precision::kFloat32;
      EXPECT_TRUE(result.SameBits(Attend(call)));
    }
  }
}

TEST(NarrowCalls, ValuesThatAreNotFiniteStayTheirs) {
  Call call = CallOf(kPlain, Precision::kInt8);
  call.value.set(0, 0, 17, 3, kNaN);
  call.value.set(0, 0, 18, 4, kInfinity);
  const Result result = Attend(call);
  for (std::int64_t i = 0; i < 300; ++i) {
    EXPECT_TRUE(std::isnan(result.out.at(0, 0, i, 3)));
    EXPECT_EQ(result.out.at(0, 0, i, 4), kInfinity);
    EXPECT_TRUE(std::isfinite(result.out.at(0, 0, i, 5)));
    EXPECT_TRUE(std::isfinite(result.out.at(0, 1, i, 3)));
  }
}

void ExpectRefused(const std::string& message, const Call& call, const Plan* plan = nullptr) {
  try {
    Attend(call, plan);
    ADD_FAILURE() << "no error: " << message;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
  }
}

TEST(NarrowCalls, PlansSayWhatIsAllowed) {
  Call call = CallOf(kPlain, Precision::kAuto);
  call.options.method = Method::kAuto;
  const Plan allowing = Plan::from_bytes(plan(call.arguments(), call.options).to_bytes());
  EXPECT_EQ(allowing.info().precision, Precision::kAuto);
  EXPECT_EQ(allowing.info().precision_error, kDefaultTolerance);
  EXPECT_TRUE(Attend(call).SameBits(Attend(call, &allowing)));
  Call other = call;
  other.options.tolerance = 1e-3;
  ExpectRefused("tolerance: differs from the plan's", other, &allowing);
  other = call;
  other.options.method = Method::kDense;
  ExpectRefused("precision: differs from the plan's", other, &allowing);
  other.options.precision = Precision::kInt8;
  const Plan forced = plan(other.arguments(), other.options);
  EXPECT_TRUE(Attend(other).SameBits(Attend(other, &forced)));
  EXPECT_TRUE(Attend(other).SameBits(Attend(call, &forced)));
  other.options.precision = Precision::kFloat32;
  ExpectRefused("precision: differs from the plan's", other, &forced);
}

TEST(NarrowCalls, WhatHasNoNarrowProductsIsRefused) {
  Call call = CallOf(kPlain, Precision::kInt8);
  call.options.method = Method::kLsh;
  ExpectRefused("precision: method lsh computes in float32 only", call);
  call.options.method = Method::kDense;
  call.options.dropout_p = 0.5;
  ExpectRefused("precision: dropout is done in float32 only", call);
  call.options.dropout_p = 0.0;
  constexpr auto kUnknown = Precision{9};
  call.options.precision = kUnknown;
  ExpectRefused("precision: got number 9, accepted are auto, float32, int16 and int8", call);
}

}  // namespace
}  // namespace smyrf::testing
