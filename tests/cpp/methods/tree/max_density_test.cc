// `tree`'s dial max_density.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

#include "testing/tree_call.h"

namespace smyrf::testing {
namespace {

TEST(TreeMaxDensity, CapsTheDensityAndSaysWhatErrorToExpect) {
  Random random(170);
  for (const double cap : {0.1, 0.3, 0.6}) {
    Call call = TreeCall({1, 4, 2, 400, 1500, 24, 16}, 0.01);
    call.FillNormal(random);  // at this tolerance without a cap: dense
    for (const auto& head : Attend(call).statistics.heads) ASSERT_TRUE(head.dense);
    call.options.max_density = cap;
    const Result result = Attend(call);
    const Exact dense = RunReference(AsDense(call));
    for (std::int64_t h = 0; h < 4; ++h) {
      const auto& head = result.statistics.heads[static_cast<std::size_t>(h)];
      ASSERT_FALSE(head.dense);
      EXPECT_LE(head.density, 1.1 * cap);
      EXPECT_GE(head.density, 0.5 * cap);  // what may be used is used
      EXPECT_GT(head.expected_error, 0.01);
      EXPECT_GT(head.expected_lse_error, 0.0);
      const Errors errors = ErrorsOf(call, result, dense, 0, h);
      EXPECT_LE(errors.out, 1.2 * head.expected_error);
      EXPECT_GE(errors.out, 0.3 * head.expected_error);
      EXPECT_LE(errors.lse, 1.2 * head.expected_lse_error);
    }
  }
}

TEST(TreeMaxDensity, CapsTheDensityAtAnyTolerance) {
  Random random(172);
  Call call = TreeCall({1, 1, 1, 400, 1500, 24, 16}, 0.0);
  call.FillNormal(random);
  for (const double tolerance : {1e-4, 1e-3, 1e-2, 0.1, 0.9}) {
    for (const double cap : {0.05, 0.2}) {
      call.options.tolerance = tolerance;
      call.options.max_density = cap;
      const auto head = Attend(call).statistics.heads[0];
      EXPECT_LE(head.density, 1.1 * cap) << call;
    }
  }
}

TEST(TreeMaxDensity, ChangesNothingWhereTheToleranceNeedsLess) {
  Random random(171);
  Call call = TreeCall({1, 2, 1, 400, 1500, 24, 16}, 0.1);
  FillSmooth(random, call);
  const Result free = Attend(call);
  for (const auto& head : free.statistics.heads) ASSERT_LT(head.density, 0.5);
  call.options.max_density = 0.9;
  EXPECT_TRUE(Attend(call).SameBits(free));
}

}  // namespace
}  // namespace smyrf::testing
