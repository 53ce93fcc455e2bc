// Rows as integers, a lane a row: signs and a Hadamard transform, steps, words of 32 bits.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "simd/convert-inl.h"
#include "simd/narrow.h"
#include "simd/tile-inl.h"

#if defined(SMYRF_NARROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_NARROW_INL_H_
#undef SMYRF_NARROW_INL_H_
#else
#define SMYRF_NARROW_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using IntTag = hn::RebindToSigned<FloatTag>;
using IntVector = hn::Vec<IntTag>;

/// The Hadamard transform of kSize columns `apart` floats apart, in registers.
template <int kSize>
HWY_INLINE void TransformInRegisters(float* x, std::int64_t apart, FloatVector& largest) {
  const FloatTag d;
  FloatVector v[kSize];
  SMYRF_UNROLL
  for (int c = 0; c < kSize; ++c) v[c] = hn::LoadU(d, x + c * apart);
  SMYRF_UNROLL
  for (int half = 1; half < kSize; half *= 2) {
    SMYRF_UNROLL
    for (int c = 0; c < kSize; ++c) {
      if ((c & half) != 0) continue;
      const auto a = v[c];
      v[c] = hn::Add(a, v[c + half]);
      v[c + half] = hn::Sub(a, v[c + half]);
    }
  }
  SMYRF_UNROLL
  for (int c = 0; c < kSize; ++c) {
    hn::StoreU(v[c], d, x + c * apart);
    largest = hn::Max(largest, hn::Abs(v[c]));
  }
}

/// One pass of the transform of `columns`: those that are `step` columns apart, kSize at a time.
/// Returns the largest magnitudes.
template <int kSize>
HWY_INLINE FloatVector TransformPass(float* x, std::int64_t columns, std::int64_t step,
                                     std::int64_t stride) {
  auto largest = hn::Zero(FloatTag());
  for (std::int64_t group = 0; group < columns; group += kSize * step) {
    for (std::int64_t c = group; c < group + step; ++c) {
      TransformInRegisters<kSize>(x + c * stride, step * stride, largest);
    }
  }
  return largest;
}

/// Columns [0, 2^n), `stride` floats apart, become their Hadamard transform, not divided by its
/// norm. Returns the largest magnitudes.
HWY_INLINE FloatVector TransformColumns(float* x, std::int64_t columns, std::int64_t stride) {
  auto largest = hn::Abs(hn::LoadU(FloatTag(), x));
  for (std::int64_t step = 1; step < columns;) {
    const std::int64_t left = columns / step;
    if (left % 8 == 0) {
      largest = TransformPass<8>(x, columns, step, stride);
      step *= 8;
    } else if (left % 4 == 0) {
      largest = TransformPass<4>(x, columns, step, stride);
      step *= 4;
    } else {
      largest = TransformPass<2>(x, columns, step, stride);
      step *= 2;
    }
  }
  return largest;
}

/// Rotates a vector of rows, columns `stride` floats apart: a sign a column, then the transform of
/// as many columns as are a power of two, and so on with the rest. Returns the largest magnitudes.
HWY_INLINE FloatVector RotateColumns(float* x, std::int64_t depth, std::int64_t stride) {
  const FloatTag d;
  auto largest = hn::Zero(d);
  for (std::int64_t first = 0; first < depth;) {
    const auto columns =
        static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(depth - first)));
    const float size = 1.0F / std::sqrt(static_cast<float>(columns));
    float* block = x + first * stride;
    for (std::int64_t c = 0; c < columns; ++c) {
      // The top bit of a multiplicative hash: a pattern that no row has by chance.
      const std::uint64_t hash = static_cast<std::uint64_t>(first + c + 1) * 0x9E3779B97F4A7C15U;
      const auto factor = hn::Set(d, (hash ^ (hash << 23)) >> 63 != 0 ? -size : size);
      float* at = block + c * stride;
      hn::StoreU(hn::Mul(hn::LoadU(d, at), factor), d, at);
    }
    largest = hn::Max(largest, TransformColumns(block, columns, stride));
    first += columns;
  }
  return largest;
}

/// What a row's elements are multiplied by to become integers; 0 where all are nearly 0.
HWY_INLINE FloatVector PerStep(FloatVector largest, float integers) {
  const FloatTag d;
  const auto is_tiny = hn::Lt(largest, hn::Set(d, kLeastNarrow));
  return hn::IfThenZeroElse(is_tiny, hn::Div(hn::Set(d, integers), largest));
}
HWY_INLINE FloatVector StepOf(FloatVector largest, float integers) {
  const FloatTag d;
  const auto is_tiny = hn::Lt(largest, hn::Set(d, kLeastNarrow));
  return hn::IfThenZeroElse(is_tiny, hn::Mul(largest, hn::Set(d, 1.0F / integers)));
}

/// kParts columns from `first` on as one word a lane, the first in the low bits; columns from depth
/// on are 0. Adds the integers to `sum`.
template <int kParts>
HWY_INLINE IntVector WordOfColumns(const float* x, std::int64_t first, std::int64_t depth,
                                   std::int64_t stride, FloatVector per_step, IntVector& sum) {
  const FloatTag d;
  const IntTag di;
  constexpr int kBits = 32 / kParts;
  const auto mask = hn::Set(di, kParts == 4 ? 0xFF : 0xFFFF);
  auto word = hn::Zero(di);
  SMYRF_UNROLL
  for (int part = kParts - 1; part >= 0; --part) {
    word = hn::ShiftLeft<kBits>(word);
    if (first + part >= depth) continue;
    const auto n = hn::NearestInt(hn::Mul(hn::LoadU(d, x + (first + part) * stride), per_step));
    sum = hn::Add(sum, n);
    word = hn::Or(word, hn::And(n, mask));
  }
  return word;
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_NARROW_INL_H_
