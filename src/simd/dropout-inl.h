// Dropout::Of for a vector of pairs.
#include <cstdint>

#include "hwy/highway.h"
#include "simd/convert-inl.h"
#include "simd/dropout.h"

#if defined(SMYRF_DROPOUT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_DROPOUT_INL_H_
#undef SMYRF_DROPOUT_INL_H_
#else
#define SMYRF_DROPOUT_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using WordTag = hn::RebindToUnsigned<FloatTag>;
using WordVector = hn::Vec<WordTag>;

/// `keys`: positions times Dropout::kStep.
HWY_INLINE FloatVector DropoutFactors(const Dropout& dropout, WordVector low, WordVector high,
                                      WordVector keys) {
  const FloatTag d;
  const WordTag du;
  auto x = hn::Add(low, keys);
  x = hn::Mul(hn::Xor(x, hn::ShiftRight<16>(x)), hn::Set(du, Dropout::kFirst));
  x = hn::Xor(x, high);
  x = hn::Mul(hn::Xor(x, hn::ShiftRight<15>(x)), hn::Set(du, Dropout::kSecond));
  x = hn::Xor(x, hn::ShiftRight<15>(x));
  const auto dropped = hn::RebindMask(d, hn::Lt(x, hn::Set(du, dropout.threshold)));
  return hn::IfThenZeroElse(dropped, hn::Set(d, dropout.factor));
}

/// The words of a block's queries, a lane each.
struct DropoutLanes {
  HWY_ALIGN std::uint32_t low[kBlockRows];
  HWY_ALIGN std::uint32_t high[kBlockRows];
};

HWY_INLINE void LoadDropout(const BlockTask& task, DropoutLanes& to) {
  const std::int64_t rows = task.query_end - task.query_begin;
  for (std::int64_t i = 0; i < kBlockRows; ++i) {
    const std::int64_t position = task.query.Position(task.query_begin + (i < rows ? i : 0));
    const DropoutRow row = task.dropout->Row(task.batch, task.head, position);
    to.low[i] = row.low;
    to.high[i] = row.high;
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_DROPOUT_INL_H_
