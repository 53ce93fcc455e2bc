// Halves of rows: which go to the left, in which order, and whole balanced orders.
#include "methods/tree/kernels/split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "methods/tree/balanced_tree.h"
#include "methods/tree/kernels/nodes.h"
#include "testing/instruction_sets.h"
#include "testing/random.h"

namespace smyrf::testing {
namespace {

std::vector<std::int32_t> Iota(std::int64_t n) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

/// One split of rows that differ in coordinate 3 alone, by `values`.
std::vector<std::int32_t> SplitOnALine(const std::vector<float>& values, std::int64_t left) {
  const auto n = std::ssize(values);
  std::vector<float> coordinates(values.size() * kernels::kCoordinates, 0.25F);
  for (std::size_t i = 0; i < values.size(); ++i) {
    coordinates[i * kernels::kCoordinates + 3] = values[i];
  }
  std::vector<std::int32_t> order = Iota(n);
  const kernels::SplitRows rows = kernels::LoadSplitRows(coordinates.data(), order);
  kernels::Split(rows, 0, n, left);
  kernels::StoreOrder(rows, order);
  return order;
}

/// What SplitOnALine should give where the direction points up, or down.
std::vector<std::int32_t> Expected(const std::vector<float>& values, std::int64_t left, bool up) {
  std::vector<std::int32_t> order = Iota(std::ssize(values));
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    const float x = values[static_cast<std::size_t>(a)];
    const float y = values[static_cast<std::size_t>(b)];
    return up ? x < y : x > y;
  });
  std::sort(order.begin(), order.begin() + left);
  std::sort(order.begin() + left, order.end());
  return order;
}

TEST(Split, PutsTheLowestToTheFrontAndKeepsTheOrder) {
  Random random(7);
  for (const std::int64_t n : {2, 3, 7, 8, 15, 16, 17, 33, 100, 129, 1000}) {
    for (const std::int64_t left : {std::int64_t{1}, n / 2, n - 1}) {
      for (const bool ties : {false, true}) {
        std::vector<float> values(static_cast<std::size_t>(n));
        for (float& x : values) {
          const double normal = random.Normal();
          x = static_cast<float>(ties ? std::round(2.0 * normal) : normal);
        }
        ForEachInstructionSet([&] {
          const std::vector<std::int32_t> order = SplitOnALine(values, left);
          EXPECT_TRUE(order == Expected(values, left, true) ||
                      order == Expected(values, left, false))
              << n << " rows, " << left << " to the left, ties: " << ties;
        });
      }
    }
  }
}

TEST(Split, EqualRowsKeepTheirOrder) {
  for (const float value : {0.0F, -3.0F, 1e30F}) {
    ForEachInstructionSet(
        [&] { EXPECT_EQ(SplitOnALine(std::vector<float>(50, value), 20), Iota(50)); });
  }
}

TEST(Split, ABalancedOrderIsAPermutationTheSameForAnyNumberOfThreads) {
  Random random(9);
  constexpr std::int64_t kRows = 3001;
  std::vector<float> coordinates(kRows * kernels::kCoordinates);
  for (float& x : coordinates) x = static_cast<float>(random.Normal());
  ForEachInstructionSet([&] {
    std::vector<std::int32_t> one = Iota(kRows);
    std::vector<std::int32_t> three = one;
    BalanceOrder(coordinates.data(), one, 300, smyrf::Run(1));
    BalanceOrder(coordinates.data(), three, 300, smyrf::Run(3));
    EXPECT_EQ(one, three);
    // Within a leaf rows lie in their own order.
    const std::vector<std::int32_t> bounds = LeafBounds(0, kRows, 300);
    for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
      EXPECT_TRUE(std::is_sorted(one.begin() + bounds[i], one.begin() + bounds[i + 1]));
    }
    std::sort(one.begin(), one.end());
    EXPECT_EQ(one, Iota(kRows));
  });
}

TEST(Split, RowsThatAreNotFiniteAreStillPermuted) {
  Random random(13);
  constexpr std::int64_t kRows = 300;
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity(), 3e38F}) {
    std::vector<float> coordinates(kRows * kernels::kCoordinates);
    for (float& x : coordinates) {
      x = random.Chance(0.01) ? bad : static_cast<float>(random.Normal());
    }
    ForEachInstructionSet([&] {
      std::vector<std::int32_t> order = Iota(kRows);
      BalanceOrder(coordinates.data(), order, 37, smyrf::Run(1));
      std::sort(order.begin(), order.end());
      EXPECT_EQ(order, Iota(kRows));
    });
  }
}

}  // namespace
}  // namespace smyrf::testing
