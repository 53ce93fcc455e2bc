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

inline float FloatFromHalf(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000U) << 16;
  const std::uint32_t magnitude = half & 0x7FFFU;
  // Shifted into place the exponent is 112 too small; a multiply mends it, subnormals included.
  float value = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  if (magnitude >= 0x7C00U) value = std::bit_cast<float>(0x7F800000U | (magnitude << 13));
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
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
