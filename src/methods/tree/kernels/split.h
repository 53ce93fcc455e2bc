// Halves of rows along the direction that tells them apart best, a level of a balanced tree at a
// time.
#pragma once

#include <cstdint>
#include <span>

#include "base/workspace.h"

namespace smyrf::kernels {

/// Leading coordinates that splits are looked for in.
inline constexpr std::int64_t kSplitCoordinates = 16;

/// Rows to be split, and room for it.
struct SplitRows {
  Floats columns;      ///< (kSplitCoordinates + 1, stride): the last one is which row it is
  Floats keys, right;  ///< (rows), and a vector
  std::int64_t stride = 0;
};

/// Rows order[0, n) of coordinates (N, kCoordinates). Memory: 76 n bytes.
SplitRows LoadSplitRows(const float* coordinates, std::span<const std::int32_t> order);

/// Moves `left` of the rows [begin, end) to the front, 0 < left < end - begin; both parts keep
/// their order. Those that lie lowest along the rows' leading principal direction (two power
/// iterations on at most 128 of them), and then, a step of 2-means with parts of these sizes, along
/// the difference of the two parts' means. Ties (to a rounding) by order.
void Split(const SplitRows& rows, std::int64_t begin, std::int64_t end, std::int64_t left);

/// order = which rows they are, as they now lie.
void StoreOrder(const SplitRows& rows, std::span<std::int32_t> order);

}  // namespace smyrf::kernels
