// From logits and the gradients of weights to weights and the gradients of logits, a lane a query.
#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "simd/backward.h"
#include "simd/convert-inl.h"
#include "simd/dropout-inl.h"
#include "simd/exp-inl.h"

#if defined(SMYRF_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_BACKWARD_INL_H_
#undef SMYRF_BACKWARD_INL_H_
#else
#define SMYRF_BACKWARD_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE float Dot(const float* a, const float* b, std::int64_t count) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  std::int64_t c = 0;
  for (; c + lanes <= count; c += lanes) {
    sum = hn::MulAdd(hn::LoadU(d, a + c), hn::LoadU(d, b + c), sum);
  }
  float result = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; c < count; ++c) result += a[c] * b[c];
  return result;
}

/// target (count, PaddedDepth(depth)) = rows times `factor`, zeros behind.
HWY_INLINE void PadRows(const float* const* rows, std::int64_t count, std::int64_t depth,
                        float factor, float* target) {
  const std::int64_t stride = PaddedDepth(depth);
  for (std::int64_t i = 0; i < count; ++i, target += stride) {
    for (std::int64_t c = 0; c < depth; ++c) target[c] = factor * rows[i][c];
    std::fill_n(target + depth, stride - depth, 0.0F);
  }
}

/// 2^(s - lse), at most 1 whatever lse is; NaN passes.
HWY_INLINE FloatVector WeightOf(FloatVector s, FloatVector lse) {
  const FloatTag d;
  const auto x = hn::Sub(s, lse);
  return Exp2(d, hn::IfThenElse(hn::Gt(x, hn::Zero(d)), hn::Zero(d), x));
}

/// p (gradient - delta), and 0 where p is, whatever the values of a pair that is masked.
HWY_INLINE FloatVector LogitGradient(FloatVector p, FloatVector gradient, FloatVector delta) {
  const FloatTag d;
  return hn::IfThenZeroElse(hn::Eq(p, hn::Zero(d)), hn::Mul(p, hn::Sub(gradient, delta)));
}

/// Logits p (count, kWidth) become weights, the gradients of weights ds those of logits.
template <int kWidth>
HWY_INLINE void GradientTile(std::int64_t count, std::int64_t vectors, const float* lse,
                             const float* delta, float* p, float* ds) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t c = 0; c < vectors * lanes; c += lanes) {
    const auto of_lse = hn::LoadU(d, lse + c);
    const auto of_delta = hn::LoadU(d, delta + c);
    for (std::int64_t at = c; at < count * kWidth; at += kWidth) {
      const auto weight = WeightOf(hn::LoadU(d, p + at), of_lse);
      hn::StoreU(weight, d, p + at);
      hn::StoreU(LogitGradient(weight, hn::LoadU(d, ds + at), of_delta), d, ds + at);
    }
  }
}

/// The same with dropout, which the weights that p becomes have in them.
template <int kWidth>
HWY_INLINE void DropGradientTile(std::int64_t count, std::int64_t vectors, const float* lse,
                                 const float* delta, const Dropout& dropout,
                                 const std::uint32_t* low, const std::uint32_t* high,
                                 const std::int32_t* positions, float* p, float* ds) {
  const FloatTag d;
  const WordTag du;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t j = 0; j < count; ++j) {
    const auto key = hn::Set(du, static_cast<std::uint32_t>(positions[j]) * Dropout::kStep);
    for (std::int64_t c = 0; c < vectors * lanes; c += lanes) {
      const std::int64_t at = j * kWidth + c;
      const auto factor =
          DropoutFactors(dropout, hn::LoadU(du, low + c), hn::LoadU(du, high + c), key);
      const auto weight = WeightOf(hn::LoadU(d, p + at), hn::LoadU(d, lse + c));
      hn::StoreU(hn::Mul(weight, factor), d, p + at);
      const auto gradient = hn::Mul(factor, hn::LoadU(d, ds + at));
      hn::StoreU(LogitGradient(weight, gradient, hn::LoadU(d, delta + c)), d, ds + at);
    }
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_BACKWARD_INL_H_
