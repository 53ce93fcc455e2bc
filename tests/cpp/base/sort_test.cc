// Exact: orders of floats against the standard library's stable sort.
#include "base/sort.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "testing/random.h"

namespace smyrf::testing {
namespace {

std::vector<std::int32_t> StableOrder(const std::vector<float>& keys) {
  std::vector<std::int32_t> order(keys.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return keys[static_cast<std::size_t>(a)] < keys[static_cast<std::size_t>(b)];
  });
  return order;
}

TEST(SortedOrder, IsAStableSort) {
  Random random(11);
  for (const std::int64_t length : {0, 1, 2, 3, 255, 256, 257, 1000, 70000}) {
    std::vector<float> keys(static_cast<std::size_t>(length));
    for (float& key : keys) key = static_cast<float>(random.Normal());
    EXPECT_EQ(SortedOrder(keys), StableOrder(keys)) << length;
    for (float& key : keys) key = static_cast<float>(random.Between(-3, 3));  // many ties
    EXPECT_EQ(SortedOrder(keys), StableOrder(keys)) << length;
    std::fill(keys.begin(), keys.end(), 1.5F);
    EXPECT_EQ(SortedOrder(keys), StableOrder(keys)) << length;
  }
}

TEST(SortedOrder, TakesEveryFloatButNaN) {
  Random random(12);
  std::vector<float> keys{0.0F,
                          -0.0F,
                          std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::max(),
                          std::numeric_limits<float>::lowest(),
                          std::numeric_limits<float>::min(),
                          std::numeric_limits<float>::denorm_min(),
                          -std::numeric_limits<float>::denorm_min(),
                          -0.0F,
                          0.0F};
  while (keys.size() < 5000) {
    const auto key = std::bit_cast<float>(static_cast<std::uint32_t>(random.Below(1LL << 32)));
    if (!std::isnan(key)) keys.push_back(key);
  }
  EXPECT_EQ(SortedOrder(keys), StableOrder(keys));
}

TEST(SelectLargest, TakesNaNAsBelowEveryNumberAndTiesByRank) {
  Random random(13);
  for (int n = 0; n < 300; ++n) {
    const std::int64_t count = random.Between(1, 200);
    const double of_nan = random.Of({0.0, 0.1, 0.9, 1.0});
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) {
      value = random.Chance(of_nan) ? std::numeric_limits<float>::quiet_NaN()
              : random.Chance(0.2)  ? static_cast<float>(random.Between(-2, 2))
              : random.Chance(0.1)  ? -std::numeric_limits<float>::infinity()
                                    : static_cast<float>(random.Normal());
    }
    std::vector<std::int32_t> ranks(values.size());
    std::iota(ranks.begin(), ranks.end(), 0);
    std::vector<std::int32_t> expected = ranks;
    std::stable_sort(expected.begin(), expected.end(), [&](std::int32_t a, std::int32_t b) {
      const float x = values[static_cast<std::size_t>(a)];
      const float y = values[static_cast<std::size_t>(b)];
      return !std::isnan(x) && (std::isnan(y) || x > y);
    });
    const std::int64_t wanted = random.Between(0, count);
    std::shuffle(ranks.begin(), ranks.end(), std::mt19937(static_cast<unsigned>(n)));
    SelectLargest(ranks, wanted, values);
    std::sort(ranks.begin(), ranks.begin() + wanted);
    std::sort(expected.begin(), expected.begin() + wanted);
    for (std::int64_t i = 0; i < wanted; ++i) {
      const auto at = static_cast<std::size_t>(i);
      ASSERT_EQ(ranks[at], expected[at]) << wanted << " of " << count;
    }
  }
}

}  // namespace
}  // namespace smyrf::testing
