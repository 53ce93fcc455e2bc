// The tile products for a handful of queries, where lanes of queries would be mostly empty: lanes
// run along D for the scores, along the keys for softmax, along Dv for the output.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "simd/convert-inl.h"
#include "simd/exp-inl.h"
#include "simd/tile-inl.h"

#if defined(SMYRF_FEW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_FEW_INL_H_
#undef SMYRF_FEW_INL_H_
#else
#define SMYRF_FEW_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// s[j] = q (depth) times rows[j] (depth). Cost: one pass over the rows.
HWY_INLINE void FewScores(const float* q, const float* const* rows, std::int64_t count,
                          std::int64_t depth, float* s) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t j = 0; j < count; ++j) {
    const float* row = rows[j];
    auto sum0 = hn::Zero(d);
    auto sum1 = hn::Zero(d);
    std::int64_t c = 0;
    for (; c + 2 * lanes <= depth; c += 2 * lanes) {
      sum0 = hn::MulAdd(hn::LoadU(d, q + c), hn::LoadU(d, row + c), sum0);
      sum1 = hn::MulAdd(hn::LoadU(d, q + c + lanes), hn::LoadU(d, row + c + lanes), sum1);
    }
    for (; c + lanes <= depth; c += lanes) {
      sum0 = hn::MulAdd(hn::LoadU(d, q + c), hn::LoadU(d, row + c), sum0);
    }
    float total = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
    for (; c < depth; ++c) total += q[c] * row[c];
    s[j] = total;
  }
}

/// Scores of one query become weights in place (in base 2, padded to whole vectors, so s needs room
/// for one more); returns what older sums are multiplied by.
HWY_INLINE float FewSoftmax(std::int64_t count, float& max, float& sum, float* s) {
  const FloatTag d;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::fill_n(s + count, lanes, -kInfinity);
  auto largest = hn::Set(d, max);
  for (std::int64_t j = 0; j < count; j += lanes) largest = hn::Max(largest, hn::LoadU(d, s + j));
  const auto new_max = hn::MaxOfLanes(d, largest);
  const auto base = hn::IfThenElse(hn::Eq(new_max, hn::Set(d, -kInfinity)), hn::Zero(d), new_max);
  const float rescale = hn::GetLane(Exp2(d, hn::Sub(hn::Set(d, max), base)));
  auto total = hn::Zero(d);
  for (std::int64_t j = 0; j < count; j += lanes) {
    const auto p = Exp2(d, hn::Sub(hn::LoadU(d, s + j), base));
    hn::StoreU(p, d, s + j);
    total = hn::Add(total, p);
  }
  max = hn::GetLane(new_max);
  sum = sum * rescale + hn::GetLane(hn::SumOfLanes(d, total));
  return rescale;
}

/// o (depth) = o * rescale + sum over j of s[j] * rows[j] (depth), kVectors vectors from `first`
/// on.
template <int kVectors_>
HWY_INLINE void FewValuesMicro(const float* s, const float* const* rows, std::int64_t count,
                               std::int64_t first, float rescale, float* o) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  FloatVector sum[kVectors_];
  SMYRF_UNROLL
  for (int c = 0; c < kVectors_; ++c) {
    sum[c] = hn::Mul(hn::LoadU(d, o + first + c * lanes), hn::Set(d, rescale));
  }
  for (std::int64_t j = 0; j < count; ++j) {
    const auto p = hn::Set(d, s[j]);
    const float* row = rows[j] + first;
    SMYRF_UNROLL
    for (int c = 0; c < kVectors_; ++c) {
      sum[c] = hn::MulAdd(p, hn::LoadU(d, row + c * lanes), sum[c]);
    }
  }
  SMYRF_UNROLL
  for (int c = 0; c < kVectors_; ++c) hn::StoreU(sum[c], d, o + first + c * lanes);
}

HWY_INLINE void FewValues(const float* s, const float* const* rows, std::int64_t count,
                          std::int64_t depth, float rescale, float* o) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(FloatTag()));
  std::int64_t c = 0;
  for (; c + 4 * lanes <= depth; c += 4 * lanes) {
    FewValuesMicro<4>(s, rows, count, c, rescale, o);
  }
  for (; c + lanes <= depth; c += lanes) FewValuesMicro<1>(s, rows, count, c, rescale, o);
  for (; c < depth; ++c) {
    float sum = o[c] * rescale;
    for (std::int64_t j = 0; j < count; ++j) sum += s[j] * rows[j][c];
    o[c] = sum;
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_FEW_INL_H_
