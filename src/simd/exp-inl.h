// 2^x for x <= 0, per instruction set. No include guard but Highway's: compiled once a target.
#include "hwy/highway.h"

#if defined(SMYRF_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_EXP_INL_H_
#undef SMYRF_EXP_INL_H_
#else
#define SMYRF_EXP_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// 2^x for x <= 0 with relative error below 2e-7. Below -125.5 the result is exactly 0, so a masked
/// logit (-inf) weighs nothing, and never subnormal: on Intel one such weight slows down all
/// products that it is a factor of, a hundredfold. NaN gives NaN. Cost: 11 operations.
///
/// x = n + f with n an integer and f in [-1/2, 1/2]; 2^(f + 1) by a polynomial that minimises the
/// largest relative error of 2^f with constant term 1; 2^(n - 1) from n's bits.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  const hn::RebindToUnsigned<D> du;
  const V lowest = hn::Set(d, -126.0F);
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
  // Argument order matters on x86: Max gives its second argument when one is NaN.
  const V clamped = hn::Max(lowest, x);
#else
  // Max may give the number when one is NaN; a comparison with NaN is false.
  const V clamped = hn::IfThenElse(hn::Lt(x, lowest), lowest, x);
#endif
  // Adding 1.5 * 2^23 + 126 leaves n + 126 in the low bits, rounded to nearest.
  const V magic = hn::Set(d, 12582912.0F + 126.0F);
  const V shifted = hn::Add(clamped, magic);
  const V f = hn::Sub(clamped, hn::Sub(shifted, magic));
  V p = hn::Set(d, 0x1.5bba14p-9F);
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.3cea88p-6F));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.c6b752p-4F));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.ebf9bcp-2F));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.62e42ap0F));
  p = hn::MulAdd(p, f, hn::Set(d, 2.0F));
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, shifted)));
  return hn::Mul(p, power);
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_EXP_INL_H_
