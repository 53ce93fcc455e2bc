// One element at a time between float32 and the narrow types. Rows go through
// kernels/convert-inl.h.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "smyrf/tensor.h"

namespace smyrf {

/// Takes no subnormal float32, which the processor may be told to read as 0.
inline float FloatFromHalf(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000U) << 16;
  const std::uint32_t magnitude = half & 0x7FFFU;
  // In place, the exponent is 112 too small; that of infinity and NaN 224.
  std::uint32_t bits = (magnitude << 13) + (magnitude < 0x7C00U ? 112U << 23 : 224U << 23);
  if (magnitude < 0x400U) {
    bits = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24F);
  }
  return std::bit_cast<float>(bits | sign);
}

inline float FloatFromBFloat(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// A bool reads as what a mask adds: 0 where true, -inf where false.
inline float LoadElement(const std::byte* data, DType dtype) {
  std::uint16_t bits = 0;
  float value = 0.0F;
  switch (dtype) {
    case DType::kFloat32:
      std::memcpy(&value, data, sizeof(value));
      break;
    case DType::kFloat16:
      std::memcpy(&bits, data, sizeof(bits));
      value = FloatFromHalf(bits);
      break;
    case DType::kBFloat16:
      std::memcpy(&bits, data, sizeof(bits));
      value = FloatFromBFloat(bits);
      break;
    case DType::kBool:
      value = *data != std::byte{0} ? 0.0F : -std::numeric_limits<float>::infinity();
      break;
  }
  return value;
}

}  // namespace smyrf
