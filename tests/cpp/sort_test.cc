// Exact: the radix sort against the standard library's stable sort.
#include "kernels/sort.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
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

}  // namespace
}  // namespace smyrf::testing
