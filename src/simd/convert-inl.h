// Rows of float32, float16 and bfloat16 to float32 and back, and the transpose that makes queries
// the SIMD lanes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/half.h"
#include "base/workspace.h"
#include "hwy/highway.h"
#include "simd/kernels.h"
#include "smyrf/tensor.h"

#if defined(SMYRF_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_CONVERT_INL_H_
#undef SMYRF_CONVERT_INL_H_
#else
#define SMYRF_CONVERT_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVector = hn::Vec<FloatTag>;

/// A vector of elements of a narrow type to float32. Exact whatever the floating-point environment:
/// no step takes a subnormal float32, which the processor may be told to read as 0.
template <DType kType>
HWY_INLINE FloatVector Widen(const std::uint16_t* elements) {
  const FloatTag df;
  const hn::RebindToUnsigned<FloatTag> du;
  const auto narrow = hn::LoadU(hn::Rebind<std::uint16_t, FloatTag>(), elements);
  if constexpr (kType == DType::kBFloat16) {
    return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, narrow)));
  } else {
#if HWY_ARCH_X86 && HWY_TARGET < HWY_SSE4 && !defined(HWY_DISABLE_F16C)
    // The instruction (vcvtph2ps) ignores the flags that make subnormal numbers 0.
    const hn::Rebind<hwy::float16_t, FloatTag> half;
    return hn::PromoteTo(df, hn::BitCast(half, narrow));
#else
    const auto bits = hn::PromoteTo(du, narrow);
    const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFU));
    const auto sign = hn::ShiftLeft<16>(hn::Sub(bits, magnitude));
    // In place, the exponent is 112 too small; that of infinity and NaN 224.
    const auto rebias = hn::Set(du, 112U << 23);
    const auto is_special = hn::Gt(magnitude, hn::Set(du, 0x7BFFU));
    const auto normal = hn::Add(hn::Add(hn::ShiftLeft<13>(magnitude), rebias),
                                hn::IfThenElseZero(is_special, rebias));
    const hn::RebindToSigned<FloatTag> di;
    const auto tiny = hn::Mul(hn::ConvertTo(df, hn::BitCast(di, magnitude)), hn::Set(df, 0x1p-24F));
    const auto is_tiny = hn::Lt(magnitude, hn::Set(du, 0x400U));
    const auto value = hn::IfThenElse(is_tiny, hn::BitCast(du, tiny), normal);
    return hn::BitCast(df, hn::Or(value, sign));
#endif
  }
}

/// `count` elements to float32.
HWY_INLINE void LoadRow(const std::byte* source, DType dtype, std::int64_t count, float* target) {
  const FloatTag df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  std::int64_t i = 0;
  if (dtype == DType::kFloat32) {
    std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  if (dtype == DType::kFloat16 || dtype == DType::kBFloat16) {
    const auto* elements = reinterpret_cast<const std::uint16_t*>(source);
    for (; i + lanes <= count; i += lanes) {
      hn::StoreU(dtype == DType::kFloat16 ? Widen<DType::kFloat16>(elements + i)
                                          : Widen<DType::kBFloat16>(elements + i),
                 df, target + i);
    }
  }
  for (; i < count; ++i) target[i] = LoadElement(source + i * SizeOf(dtype), dtype);
}

/// pointers[i] = row begin + i as float32: in place, or converted into `buffer`.
HWY_INLINE void FloatRows(const Rows& rows, std::int64_t begin, std::int64_t count,
                          std::int64_t depth, Buffer& buffer, const float** pointers) {
  if (rows.dtype == DType::kFloat32) {
    for (std::int64_t i = 0; i < count; ++i) {
      pointers[i] = reinterpret_cast<const float*>(rows.Row(begin + i));
    }
    return;
  }
  float* to = buffer.Need(static_cast<std::size_t>(count * depth));
  for (std::int64_t i = 0; i < count; ++i, to += depth) {
    LoadRow(rows.Row(begin + i), rows.dtype, depth, to);
    pointers[i] = to;
  }
}

/// float32 to the 16 bits of a narrow type, in the low halves; nearest even, NaN stays NaN.
template <DType kType, class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> BitsFromFloat(D df, hn::Vec<D> value) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, value);
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFFU));
  const auto sign = hn::ShiftRight<16>(hn::Sub(bits, magnitude));
  const auto is_nan = hn::Gt(magnitude, hn::Set(du, 0x7F800000U));
  if constexpr (kType == DType::kBFloat16) {
    const auto odd = hn::And(hn::ShiftRight<16>(magnitude), hn::Set(du, 1U));
    const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(magnitude, hn::Set(du, 0x7FFFU)), odd));
    return hn::Or(sign, hn::IfThenElse(is_nan, hn::Set(du, 0x7FC0U), rounded));
  } else {
    // Normal results: re-bias the exponent by 112 and round 13 bits away.
    const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1U));
    const auto normal =
        hn::ShiftRight<13>(hn::Add(hn::Sub(magnitude, hn::Set(du, (112U << 23) - 0xFFFU)), odd));
    // Subnormal results: adding 1/2 leaves the rounded multiple of 2^-24 in the low bits.
    const auto half = hn::Set(df, 0.5F);
    const auto tiny =
        hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(df, magnitude), half)), hn::BitCast(du, half));
    const auto is_tiny = hn::Lt(magnitude, hn::Set(du, 113U << 23));
    const auto overflows = hn::Gt(magnitude, hn::Set(du, 0x477FEFFFU));  // from 65520 on
    auto result = hn::IfThenElse(is_tiny, tiny, normal);
    result = hn::IfThenElse(overflows, hn::Set(du, 0x7C00U), result);
    return hn::Or(sign, hn::IfThenElse(is_nan, hn::Set(du, 0x7E00U), result));
  }
}

template <DType kType>
HWY_INLINE void StoreNarrow(const float* source, std::int64_t count, std::uint16_t* target) {
  const FloatTag df;
  const hn::Rebind<std::uint16_t, FloatTag> d16;
  const hn::RebindToSigned<FloatTag> di;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto bits = BitsFromFloat<kType>(df, hn::LoadU(df, source + i));
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, bits)), d16, target + i);
  }
  const hn::CappedTag<float, 1> d1;
  for (; i < count; ++i) {
    target[i] =
        static_cast<std::uint16_t>(hn::GetLane(BitsFromFloat<kType>(d1, hn::Set(d1, source[i]))));
  }
}

/// rows[i][0..depth) for i < count becomes target[c * row_stride + i]; i from count up to the next
/// multiple of 4 is zero. Elements are multiplied by `factor`.
HWY_INLINE void TransposeRows(const float* const* rows, std::int64_t count, std::int64_t depth,
                              float factor, std::int64_t row_stride, float* target) {
  for (std::int64_t i = 0; i < count; i += 4) {
    const float* r[4];
    for (std::int64_t j = 0; j < 4; ++j) r[j] = rows[i + j < count ? i + j : i];
    std::int64_t c = 0;
#if HWY_TARGET != HWY_SCALAR
    for (; c + 4 <= depth; c += 4) {
      const hn::FixedTag<float, 4> d4;
      const hn::Repartition<std::uint64_t, decltype(d4)> d64;
      const auto scale = hn::Set(d4, factor);
      const auto a = hn::Mul(scale, hn::LoadU(d4, r[0] + c));
      const auto b = hn::Mul(scale, hn::LoadU(d4, r[1] + c));
      const auto e = hn::Mul(scale, hn::LoadU(d4, r[2] + c));
      const auto f = hn::Mul(scale, hn::LoadU(d4, r[3] + c));
      const auto ab_low = hn::BitCast(d64, hn::InterleaveLower(d4, a, b));
      const auto ab_high = hn::BitCast(d64, hn::InterleaveUpper(d4, a, b));
      const auto ef_low = hn::BitCast(d64, hn::InterleaveLower(d4, e, f));
      const auto ef_high = hn::BitCast(d64, hn::InterleaveUpper(d4, e, f));
      float* to = target + c * row_stride + i;
      hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d64, ab_low, ef_low)), d4, to);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d64, ab_low, ef_low)), d4, to + row_stride);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d64, ab_high, ef_high)), d4,
                 to + 2 * row_stride);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d64, ab_high, ef_high)), d4,
                 to + 3 * row_stride);
    }
#endif
    for (; c < depth; ++c) {
      for (std::int64_t j = 0; j < 4; ++j) target[c * row_stride + i + j] = factor * r[j][c];
    }
    // Lanes past the last row repeated row i above; make them zero.
    for (std::int64_t j = count - i; j < 4; ++j) {
      for (std::int64_t row = 0; row < depth; ++row) target[row * row_stride + i + j] = 0.0F;
    }
  }
}

/// Columns (depth, kBlockRows), a lane a row, as rows (rows, depth).
HWY_INLINE void ColumnsToRows(const float* columns, std::int64_t rows, std::int64_t depth,
                              float* result) {
  const float* pointers[kBlockRows];
  std::int64_t c = 0;
  while (c + 4 <= depth) {
    const std::int64_t count = std::min(kBlockRows, (depth - c) / 4 * 4);
    for (std::int64_t j = 0; j < count; ++j) pointers[j] = columns + (c + j) * kBlockRows;
    TransposeRows(pointers, count, rows, 1.0F, depth, result + c);
    c += count;
  }
  for (; c < depth; ++c) {
    for (std::int64_t i = 0; i < rows; ++i) result[i * depth + c] = columns[c * kBlockRows + i];
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_CONVERT_INL_H_
