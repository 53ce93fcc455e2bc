// `tree`'s dial max_density.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

#include "testing/tree_call.h"

namespace smyrf::testing {
namespace {

TEST(TreeMaxDensity, SaysWhatErrorToExpect) {
  Random random(107);
  Call call = TreeCall({1, 1, 1, 600, 800, 32, 16}, 0.01);
  call.FillNormal(random);
  call.options.max_density = 0.3;
  const Result result = Attend(call);
  const Statistics::Head& head = result.statistics.heads[0];
  EXPECT_FALSE(head.dense);
  EXPECT_LT(head.density, 0.7);
  EXPECT_GT(head.expected_error, 0.01);
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
