// AttendNarrowBlock: AttendBlock's streaming softmax with narrow products.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "base/workspace.h"
#include "simd/block.h"
#include "simd/kernels.h"
#include "simd/narrow.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "simd/narrow_attend.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "simd/convert-inl.h"
#include "simd/narrow-inl.h"
#include "simd/narrow_block-inl.h"

#ifndef SMYRF_NARROW_ATTEND_ONCE_
#define SMYRF_NARROW_ATTEND_ONCE_
namespace smyrf::kernels {
namespace {

/// What the processor has beyond the instruction set.
struct NarrowFeatures {
  bool vnni_bf16 = false;
};
NarrowFeatures FeaturesOfProcessor() {
  NarrowFeatures features;
#if defined(__x86_64__)
  __builtin_cpu_init();
  features.vnni_bf16 = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#endif
  return features;
}
const NarrowFeatures& Features() {
  static const NarrowFeatures features = FeaturesOfProcessor();
  return features;
}

}  // namespace
}  // namespace smyrf::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_AVX3
/// AVX-512 with VNNI and BF16. In assembly, which is not tied to what this file is compiled for,
/// and which keeps sums where they are.
struct VnniBf16 {
  static HWY_INLINE FloatVector Bytes(FloatVector sum, IntVector q, IntVector k) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(q.raw), "v"(k.raw));
    return sum;
  }
  static HWY_INLINE FloatVector Halves(FloatVector sum, IntVector q, IntVector k) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(q.raw), "v"(k.raw));
    return sum;
  }
  static HWY_INLINE FloatVector BFloats(FloatVector sum, IntVector p, IntVector v) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(p.raw), "v"(v.raw));
    return sum;
  }
  /// 2^(x / 64) as bfloat16 for integers x from -127 * 64 to 0, below which nothing may lie.
  struct PowersOfTwo {
    __m512i low, high;
    PowersOfTwo() {
      alignas(64) std::uint16_t table[64];
      for (int i = 0; i < 64; ++i) {
        const float power = std::exp2(static_cast<float>(i) / 64.0F);
        // What is added for a whole exponent, 128 for 64 parts, is 2 for each part.
        table[i] =
            static_cast<std::uint16_t>(((std::bit_cast<std::uint32_t>(power) + 0x8000U) >> 16) -
                                       2U * static_cast<unsigned>(i));
      }
      low = _mm512_load_si512(table);
      high = _mm512_load_si512(table + 32);
    }
    HWY_INLINE IntVector Pair(IntVector even, IntVector odd) const {
      const __m512i x = _mm512_mask_mov_epi16(even.raw, 0xAAAAAAAAU, hn::ShiftLeft<16>(odd).raw);
      return IntVector{
          _mm512_add_epi16(_mm512_permutex2var_epi16(low, x, high), _mm512_add_epi16(x, x))};
    }
  };
  static HWY_INLINE IntVector Pair(FloatVector even, FloatVector odd) {
    const IntTag di;
    const auto half = hn::Set(di, 0x8000);
    const auto low = hn::ShiftRight<16>(
        hn::BitCast(hn::RebindToUnsigned<IntTag>(), hn::Add(hn::BitCast(di, even), half)));
    const auto high = hn::Add(hn::BitCast(di, odd), half);
    return IntVector{_mm512_mask_mov_epi16(low.raw, 0xAAAAAAAAU, high.raw)};
  }
};
#endif

bool HasPrecisionImpl(Precision precision) {
  if (precision == Precision::kFloat32) return true;
#if HWY_TARGET == HWY_AVX3
  return Features().vnni_bf16;
#else
  return false;
#endif
}

Partial AttendNarrowImpl(const NarrowTask& task) {
#if HWY_TARGET == HWY_AVX3
  if (Features().vnni_bf16) return AttendNarrow<VnniBf16>(task);
#endif
  return AttendBlock(task.block);
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf::kernels {

HWY_EXPORT(HasPrecisionImpl);
HWY_EXPORT(AttendNarrowImpl);

bool HasPrecision(Precision precision) { return HWY_DYNAMIC_DISPATCH(HasPrecisionImpl)(precision); }

Partial AttendNarrowBlock(const NarrowTask& task) {
  return HWY_DYNAMIC_DISPATCH(AttendNarrowImpl)(task);
}

}  // namespace smyrf::kernels
#endif
