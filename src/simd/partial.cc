// Merging and finishing of partial attention.
#include "simd/partial.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>

#include "simd/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "simd/partial.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "simd/convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// out (count) = out * weight + other * other_weight.
void BlendImpl(float* out, float weight, const float* other, float other_weight,
               std::int64_t count) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto a = hn::Set(d, weight);
  const auto b = hn::Set(d, other_weight);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto sum = hn::MulAdd(b, hn::LoadU(d, other + i), hn::Mul(a, hn::LoadU(d, out + i)));
    hn::StoreU(sum, d, out + i);
  }
  for (; i < count; ++i) out[i] = std::fma(other_weight, other[i], weight * out[i]);
}

/// target (count) = source * factor in `dtype`; source is scaled in place where that is narrow.
void StoreScaledImpl(float* source, float factor, std::int64_t count, DType dtype,
                     std::byte* target) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto factors = hn::Set(d, factor);
  float* scaled = dtype == DType::kFloat32 ? reinterpret_cast<float*>(target) : source;
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, source + i), factors), d, scaled + i);
  }
  for (; i < count; ++i) scaled[i] = source[i] * factor;
  if (dtype == DType::kFloat16) {
    StoreNarrow<DType::kFloat16>(scaled, count, reinterpret_cast<std::uint16_t*>(target));
  } else if (dtype == DType::kBFloat16) {
    StoreNarrow<DType::kBFloat16>(scaled, count, reinterpret_cast<std::uint16_t*>(target));
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf::kernels {

HWY_EXPORT(BlendImpl);
HWY_EXPORT(StoreScaledImpl);

void MergePartial(const Partial& row, const Partial& other) {
  if (*other.sum == 0.0F && *row.sum != 0.0F) return;
  if (*row.sum == 0.0F && *other.sum != 0.0F) return CopyPartial(row, other);
  // Equal largest logits, infinite ones included, weigh by their sums alone. NaN is never lost: the
  // difference to it is NaN, and a sum that is NaN stays so under any weight.
  const float largest = std::max(*row.max, *other.max);
  const float weight = *row.max == largest ? 1.0F : std::exp2(*row.max - largest);
  const float other_weight = *other.max == largest ? 1.0F : std::exp2(*other.max - largest);
  *row.max = largest;
  *row.sum = weight * *row.sum + other_weight * *other.sum;
  HWY_DYNAMIC_DISPATCH(BlendImpl)(row.out, weight, other.out, other_weight, row.depth);
}

float FinishPartial(const Partial& row, DType dtype, std::byte* target) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr auto kLn2 = std::numbers::ln2_v<float>;
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  const float sum = *row.sum;
  const bool empty = sum == 0.0F;  // then out is 0, or NaN
  HWY_DYNAMIC_DISPATCH(StoreScaledImpl)
  (row.out, empty ? 1.0F : 1.0F / sum, row.depth, dtype, target);
  if (empty) return -kInfinity;
  // A row that only the bound of additive masks left finite has that number itself.
  return *row.max == kLowest ? kLowest : kLn2 * *row.max + std::log(sum);
}

}  // namespace smyrf::kernels
#endif
