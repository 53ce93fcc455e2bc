// Orders rows by a float key.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace smyrf {

/// Bits whose unsigned order is the order of floats (-0 equals 0): flipping the sign bit, or all
/// bits of a negative number. Above 0. Not for NaN.
inline std::uint32_t OrderedBits(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x + 0.0F);
  return bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFU : 0x80000000U);
}

/// Moves the `count` ranks with the largest values, ties by rank, to the front. NaN lies below
/// every number: `<` alone is no order where one value is NaN, and algorithms that trust it may do
/// anything.
inline void SelectLargest(std::span<std::int32_t> ranks, std::int64_t count,
                          std::span<const float> values) {
  const auto key = [&](std::int32_t rank) {
    const float value = values[static_cast<std::size_t>(rank)];
    return std::isnan(value) ? 0U : OrderedBits(value);
  };
  std::nth_element(ranks.begin(), ranks.begin() + count, ranks.end(),
                   [&](std::int32_t a, std::int32_t b) {
                     const std::uint32_t x = key(a);
                     const std::uint32_t y = key(b);
                     return x > y || (x == y && a < b);
                   });
}

/// Indices of `keys` in ascending order of key; equal keys by index (-0 equals 0). Keys must not be
/// NaN. Radix sort, least significant byte first: 4 passes over 8 bytes a key.
inline std::vector<std::int32_t> SortedOrder(std::span<const float> keys) {
  struct Entry {
    std::uint32_t key;
    std::int32_t index;
  };
  const std::size_t n = keys.size();
  std::vector<Entry> entries(n);
  std::vector<Entry> next(n);
  std::array<std::array<std::uint32_t, 256>, 4> counts{};
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t key = OrderedBits(keys[i]);
    entries[i] = {key, static_cast<std::int32_t>(i)};
    for (std::size_t byte = 0; byte < 4; ++byte) ++counts[byte][(key >> (8 * byte)) & 0xFFU];
  }
  for (std::size_t byte = 0; byte < 4; ++byte) {
    std::uint32_t sum = 0;
    for (std::uint32_t& count : counts[byte]) {
      const std::uint32_t here = count;
      count = sum;
      sum += here;
    }
    for (const Entry& entry : entries) {
      next[counts[byte][(entry.key >> (8 * byte)) & 0xFFU]++] = entry;
    }
    entries.swap(next);
  }
  std::vector<std::int32_t> order(n);
  for (std::size_t i = 0; i < n; ++i) order[i] = entries[i].index;
  return order;
}

}  // namespace smyrf
