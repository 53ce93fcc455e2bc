// The running softmax over tiles of scores, a lane a query: in base 2, so that exp is exp2.
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "simd/convert-inl.h"
#include "simd/exp-inl.h"

#if defined(SMYRF_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_SOFTMAX_INL_H_
#undef SMYRF_SOFTMAX_INL_H_
#else
#define SMYRF_SOFTMAX_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Scores become weights 2^(s - max) in place; max, sum and rescale move on.
template <int kWidth>
HWY_INLINE void SoftmaxTile(std::int64_t count, std::int64_t vectors, float* max, float* sum,
                            float* rescales, float* scores) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (std::int64_t c = 0; c < vectors; ++c) {
    float* s = scores + c * lanes;
    const auto old_max = hn::LoadU(d, max + c * lanes);
    auto m0 = old_max;
    auto m1 = old_max;
    std::int64_t j = 0;
    for (; j + 2 <= count; j += 2) {
      m0 = hn::Max(m0, hn::LoadU(d, s + j * kWidth));
      m1 = hn::Max(m1, hn::LoadU(d, s + (j + 1) * kWidth));
    }
    if (j < count) m0 = hn::Max(m0, hn::LoadU(d, s + j * kWidth));
    const auto new_max = hn::Max(m0, m1);
    // A lane that has seen only -inf subtracts 0, so that -inf - -inf makes no NaN.
    const auto base = hn::IfThenElse(hn::Eq(new_max, minus_infinity), hn::Zero(d), new_max);
    const auto rescale = Exp2(d, hn::Sub(old_max, base));
    auto sum0 = hn::Mul(hn::LoadU(d, sum + c * lanes), rescale);
    auto sum1 = hn::Zero(d);
    for (j = 0; j + 2 <= count; j += 2) {
      const auto p0 = Exp2(d, hn::Sub(hn::LoadU(d, s + j * kWidth), base));
      const auto p1 = Exp2(d, hn::Sub(hn::LoadU(d, s + (j + 1) * kWidth), base));
      hn::StoreU(p0, d, s + j * kWidth);
      hn::StoreU(p1, d, s + (j + 1) * kWidth);
      sum0 = hn::Add(sum0, p0);
      sum1 = hn::Add(sum1, p1);
    }
    if (j < count) {
      const auto p0 = Exp2(d, hn::Sub(hn::LoadU(d, s + j * kWidth), base));
      hn::StoreU(p0, d, s + j * kWidth);
      sum0 = hn::Add(sum0, p0);
    }
    hn::StoreU(new_max, d, max + c * lanes);
    hn::StoreU(hn::Add(sum0, sum1), d, sum + c * lanes);
    hn::StoreU(rescale, d, rescales + c * lanes);
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_SOFTMAX_INL_H_
