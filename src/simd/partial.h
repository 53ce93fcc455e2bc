// Attention over some of a query's keys, as it is before the division: what is merged wherever the
// keys come in parts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "smyrf/tensor.h"

namespace smyrf::kernels {

/// Rows of queries, each over some keys. Weights are 2^(logit - max), so the largest is 1.
///
/// A row that may see no key has out 0, max -inf and sum 0. A row whose keys all have a logit of
/// -inf has no mass either, but its out is NaN: 0 over 0.
struct Partial {
  float* out = nullptr;     ///< (rows, depth): the sum of weights times values
  float* max = nullptr;     ///< (rows): the largest logit, in base 2
  float* sum = nullptr;     ///< (rows): the sum of weights
  std::int64_t depth = 0;   ///< Dv
  std::int64_t stride = 0;  ///< floats from a row of out to the next

  Partial Row(std::int64_t i) const { return {out + i * stride, max + i, sum + i, depth, stride}; }
};

// The functions below take one row.

/// No key yet.
inline void InitPartial(const Partial& row) {
  std::fill_n(row.out, row.depth, 0.0F);
  *row.max = -std::numeric_limits<float>::infinity();
  *row.sum = 0.0F;
}

/// Ends a row of a kernel, whose masks know whether a key was `allowed`: its sum does not.
inline void ClosePartial(const Partial& row, bool allowed) {
  if (allowed && *row.sum != 0.0F) return;
  InitPartial(row);
  if (allowed) std::fill_n(row.out, row.depth, std::numeric_limits<float>::quiet_NaN());
}

inline void CopyPartial(const Partial& row, const Partial& other) {
  std::copy_n(other.out, row.depth, row.out);
  *row.max = *other.max;
  *row.sum = *other.sum;
}

/// `row` becomes that over its own keys and the other's. A part without mass changes no bit of one
/// with mass.
void MergePartial(const Partial& row, const Partial& other);

/// Writes out over sum to `target`, which may be row.out, and returns the natural lse. Row.out is
/// used up.
float FinishPartial(const Partial& row, DType dtype, std::byte* target);

}  // namespace smyrf::kernels
