// Packs keys and values for narrow products, and measures what packing will leave out.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/workspace.h"
#include "simd/narrow.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "simd/narrow_pack.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "simd/convert-inl.h"
#include "simd/narrow-inl.h"
#include "simd/tile-inl.h"

#ifndef SMYRF_NARROW_PACK_ONCE_
#define SMYRF_NARROW_PACK_ONCE_
namespace smyrf::kernels {
namespace {

struct PackScratch {
  Buffer converted, columns;
  std::int64_t bytes() const { return BytesOf(converted, columns); }
};

}  // namespace
}  // namespace smyrf::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Calls body(first row, rows, columns) for as many rows as there are lanes, with a lane a row;
/// lanes without a row are 0.
template <class Body>
HWY_INLINE void ForRowVectors(const Rows& rows, std::int64_t begin, std::int64_t end,
                              std::int64_t depth, const Body& body) {
  PackScratch& scratch = OfThread<PackScratch>();
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(FloatTag()));
  // Two rows at least: for what bodies put there afterwards.
  const std::int64_t size = std::max<std::int64_t>(depth, 2) * std::max<std::int64_t>(lanes, 4);
  float* columns = scratch.columns.Need(static_cast<std::size_t>(size));
  const float* pointers[64];
  for (std::int64_t first = begin; first < end; first += lanes) {
    const std::int64_t count = std::min(lanes, end - first);
    FloatRows(rows, first, count, depth, scratch.converted, pointers);
    if (count < lanes) std::fill_n(columns, depth * lanes, 0.0F);
    TransposeRows(pointers, count, depth, 1.0F, std::max<std::int64_t>(lanes, 4), columns);
    body(first, count, columns);
  }
}

RowsMeasure MeasureRowsImpl(const Rows& rows, std::int64_t begin, std::int64_t end,
                            std::int64_t depth) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  RowsMeasure measure;
  ForRowVectors(rows, begin, end, depth,
                [&](std::int64_t, std::int64_t count, float* columns) HWY_ATTR {
                  const std::int64_t stride = std::max<std::int64_t>(lanes, 4);
                  auto norms = hn::Zero(d);
                  for (std::int64_t c = 0; c < depth; ++c) {
                    const auto x = hn::LoadU(d, columns + c * stride);
                    norms = hn::MulAdd(x, x, norms);
                  }
                  const auto largest = RotateColumns(columns, depth, stride);
                  float* norm = columns;
                  float* most = columns + stride;
                  hn::StoreU(norms, d, norm);
                  hn::StoreU(largest, d, most);
                  for (std::int64_t i = 0; i < count; ++i) {
                    const double squared = norm[i] <= kMostNarrow ? norm[i] : INFINITY;
                    const double element = static_cast<double>(most[i]) * most[i];
                    const RowsMeasure::Squares row{element, squared};
                    measure.Add({row, row, 1});
                  }
                });
  return measure;
}

void PackKeysImpl(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth,
                  Precision precision, const NarrowKeys& keys) {
  const FloatTag d;
  const IntTag di;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t stride = std::max<std::int64_t>(lanes, 4);
  const auto integers = static_cast<float>(LargestInteger(precision, depth));
  const std::int64_t words = keys.stride / 4;
  const bool bytes = precision == Precision::kInt8;
  ForRowVectors(
      rows, begin, end, depth,
      [&](std::int64_t first, std::int64_t count, float* columns) HWY_ATTR {
        const auto largest = RotateColumns(columns, depth, stride);
        const auto per_step = PerStep(largest, integers);
        auto sum = hn::Zero(di);
        alignas(64) std::int32_t word[64];
        for (std::int64_t w = 0; w < words; ++w) {
          hn::Store(bytes ? WordOfColumns<4>(columns, 4 * w, depth, stride, per_step, sum)
                          : WordOfColumns<2>(columns, 2 * w, depth, stride, per_step, sum),
                    di, word);
          for (std::int64_t i = 0; i < count; ++i) {
            reinterpret_cast<std::int32_t*>(keys.numbers + (first + i) * keys.stride)[w] = word[i];
          }
        }
        float* steps = columns;
        hn::StoreU(StepOf(largest, integers), d, steps);
        std::copy_n(steps, count, keys.steps + first);
        hn::Store(sum, di, word);
        // Bytes of queries are 128 more than they stand for.
        for (std::int64_t i = 0; i < count; ++i) {
          keys.offsets[first + i] = bytes ? -128 * word[i] : 0;
        }
      });
}

/// The largest finite bfloat16 in place of the infinity that a finite value would be rounded to.
HWY_INLINE hn::Vec<hn::RebindToUnsigned<FloatTag>> FiniteBFloat16(FloatVector value) {
  const FloatTag d;
  const hn::RebindToUnsigned<FloatTag> du;
  const auto bits = BitsFromFloat<DType::kBFloat16>(d, value);
  const auto was_finite =
      hn::Lt(hn::And(hn::BitCast(du, value), hn::Set(du, 0x7FFFFFFFU)), hn::Set(du, 0x7F800000U));
  const auto is_infinite = hn::Eq(hn::And(bits, hn::Set(du, 0x7FFFU)), hn::Set(du, 0x7F80U));
  return hn::Sub(bits, hn::IfThenElseZero(hn::And(was_finite, is_infinite), hn::Set(du, 1U)));
}

void PackValuesImpl(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth,
                    std::uint32_t* pairs) {
  const FloatTag d;
  const hn::RebindToUnsigned<FloatTag> du;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  PackScratch& scratch = OfThread<PackScratch>();
  float* zeros = scratch.columns.Need(static_cast<std::size_t>(depth + 2 * lanes));
  std::fill_n(zeros, depth, 0.0F);
  float* left = zeros + depth;
  for (std::int64_t i = begin; i < end; i += 2) {
    const float* row[2] = {nullptr, zeros};
    FloatRows(rows, i, std::min<std::int64_t>(2, end - i), depth, scratch.converted, row);
    std::uint32_t* to = pairs + i / 2 * depth;
    std::int64_t c = 0;
    for (; c + lanes <= depth; c += lanes) {
      const auto even = FiniteBFloat16(hn::LoadU(d, row[0] + c));
      const auto odd = FiniteBFloat16(hn::LoadU(d, row[1] + c));
      hn::StoreU(hn::Or(even, hn::ShiftLeft<16>(odd)), du, to + c);
    }
    if (c == depth) continue;
    std::fill_n(left, 2 * lanes, 0.0F);
    std::copy_n(row[0] + c, depth - c, left);
    std::copy_n(row[1] + c, depth - c, left + lanes);
    const auto even = FiniteBFloat16(hn::LoadU(d, left));
    const auto odd = FiniteBFloat16(hn::LoadU(d, left + lanes));
    alignas(64) std::uint32_t word[64];
    hn::Store(hn::Or(even, hn::ShiftLeft<16>(odd)), du, word);
    std::copy_n(word, depth - c, to + c);
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf::kernels {

HWY_EXPORT(MeasureRowsImpl);
HWY_EXPORT(PackKeysImpl);
HWY_EXPORT(PackValuesImpl);

RowsMeasure MeasureRows(const Rows& rows, std::int64_t begin, std::int64_t end,
                        std::int64_t depth) {
  return HWY_DYNAMIC_DISPATCH(MeasureRowsImpl)(rows, begin, end, depth);
}

void PackKeys(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth,
              Precision precision, const NarrowKeys& keys) {
  HWY_DYNAMIC_DISPATCH(PackKeysImpl)(rows, begin, end, depth, precision, keys);
}

void PackValues(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth,
                std::uint32_t* pairs) {
  HWY_DYNAMIC_DISPATCH(PackValuesImpl)(rows, begin, end, depth, pairs);
}

std::int32_t LargestInteger(Precision precision, std::int64_t depth) {
  if (precision == Precision::kInt8) return 127;
  const auto most = static_cast<std::int32_t>(std::sqrt(0x7FFFFFFFp0 / static_cast<double>(depth)));
  return std::min(4095, most);
}

double LogitError(const RowsMeasure& queries, const RowsMeasure& keys, std::int64_t depth,
                  double scale, Precision precision) {
  if (queries.count == 0 || keys.count == 0) return 0.0;
  const double integers = LargestInteger(precision, depth);
  const auto query_count = static_cast<double>(queries.count);
  const auto key_count = static_cast<double>(keys.count);
  const double key_element = std::max(keys.sum.element / key_count, keys.most.element / 4.0);
  const double key_norm = std::max(keys.sum.norm / key_count, keys.most.norm / 4.0);
  // A rounding error is spread evenly over a step.
  const double variance = (queries.sum.element / query_count * key_norm +
                           key_element * queries.sum.norm / query_count) /
                          (12.0 * integers * integers);
  return std::abs(scale) * std::sqrt(variance);
}

}  // namespace smyrf::kernels
#endif
