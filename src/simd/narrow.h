// Attention with narrow products: queries and keys as integers with a step a row, weights and
// values as bfloat16. What the integers leave out is known from the steps before anything is
// multiplied.
//
// Rows are rotated first, by signs and a Hadamard transform, which leaves their products as they
// are and spreads a row's outliers over all its elements: a step is a row's largest element over
// what the integers hold.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "simd/kernels.h"
#include "smyrf/options.h"

namespace smyrf::kernels {

/// Whether the instruction set in force has products of this precision.
bool HasPrecision(Precision precision);

/// Rows whose squared norm is above this are out of range: their products would overflow.
inline constexpr double kMostNarrow = 0x1p100;
/// Rows whose largest element is below this are packed as 0.
inline constexpr float kLeastNarrow = 0x1p-100F;

/// Largest magnitude of an integer: sums over D of products stay below 2^31.
std::int32_t LargestInteger(Precision precision, std::int64_t depth);

/// Bytes of a packed row; rows are whole words of 32 bits.
inline std::int64_t NarrowBytes(Precision precision, std::int64_t depth) {
  return precision == Precision::kInt8 ? (depth + 3) / 4 * 4 : (depth + 1) / 2 * 4;
}

/// What is known of some rows of one head.
struct RowsMeasure {
  /// Of a rotated row: the square of its largest element, and its squared norm, which is infinite
  /// where the row is out of range.
  struct Squares {
    double element = 0.0;
    double norm = 0.0;
  };
  Squares sum;   ///< over rows
  Squares most;  ///< of a row
  std::int64_t count = 0;

  void Add(const RowsMeasure& other) {
    sum.element += other.sum.element;
    sum.norm += other.sum.norm;
    most.element = std::max(most.element, other.most.element);
    most.norm = std::max(most.norm, other.most.norm);
    count += other.count;
  }
};

/// Of rows [begin, end).
RowsMeasure MeasureRows(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth);

/// RMS error of a logit, in nats, that narrow queries and keys have together: of all pairs, or half
/// of that with the largest key where this is more, since one key may hold all of the mass.
double LogitError(const RowsMeasure& queries, const RowsMeasure& keys, std::int64_t depth,
                  double scale, Precision precision);

/// Rows of keys as integers, in the order that they were packed in.
struct NarrowKeys {
  std::byte* numbers = nullptr;     ///< (rows, stride): rotated, int8 or int16
  std::int64_t stride = 0;          ///< bytes
  float* steps = nullptr;           ///< (rows)
  std::int32_t* offsets = nullptr;  ///< (rows): what the sum of a product starts at
};

/// Packs rows [begin, end) to the same places of `keys`.
void PackKeys(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth,
              Precision precision, const NarrowKeys& keys);

/// Packs rows [begin, end), an even begin, to pairs[(i / 2) * depth + c]: bfloat16, the even row in
/// the low half; a row that is missing is 0. Finite values stay finite.
void PackValues(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth,
                std::uint32_t* pairs);

/// AttendBlock with narrow products, of more than kFewRows queries.
struct NarrowTask {
  BlockTask block;
  Precision precision = Precision::kInt8;
  NarrowKeys key;
  const std::uint32_t* value = nullptr;
};
Partial AttendNarrowBlock(const NarrowTask& task);

}  // namespace smyrf::kernels
