// Tensors of any dtype and layout for tests, with rounding of their own in double precision.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "smyrf/tensor.h"
#include "testing/random.h"

namespace smyrf::testing {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// IEEE binary formats: significant bits and the exponent of the smallest normal number.
struct Format {
  int precision;
  int min_exponent;
  int bits;
  double largest;
};
inline Format FormatOf(DType dtype) {
  if (dtype == DType::kFloat16) return {11, -14, 16, 65504.0};
  if (dtype == DType::kBFloat16) return {8, -126, 16, 0x1.FEp127};
  return {24, -126, 32, 0x1.FFFFFEp127};
}

/// Largest relative error of rounding to nearest.
inline double UnitRoundoff(DType dtype) { return std::ldexp(1.0, -FormatOf(dtype).precision); }

/// The nearest number of the format, ties to even, subnormals and overflow as IEEE 754 says.
/// Independent of the library: by division in double precision, not by bits.
inline double Rounded(double x, DType dtype) {
  if (x == 0.0 || !std::isfinite(x)) return x;
  const Format format = FormatOf(dtype);
  const int exponent = std::max(std::ilogb(x), format.min_exponent);
  const double unit = std::ldexp(1.0, exponent - (format.precision - 1));
  const double rounded = std::nearbyint(x / unit) * unit;
  return std::abs(rounded) > format.largest ? std::copysign(kInfinity, x) : rounded;
}

/// The bit pattern of a number that the format holds exactly (or of NaN).
inline std::uint32_t Encoded(double x, DType dtype) {
  const Format format = FormatOf(dtype);
  const int fraction_bits = format.precision - 1;
  const std::uint32_t sign = (std::signbit(x) ? 1U : 0U) << (format.bits - 1);
  const std::uint32_t infinity = ((1U << (format.bits - format.precision)) - 1U) << fraction_bits;
  if (std::isnan(x)) return sign | infinity | (1U << (fraction_bits - 1));
  if (std::isinf(x)) return sign | infinity;
  if (x == 0.0) return sign;
  const int exponent = std::max(std::ilogb(x), format.min_exponent);
  // The hidden bit of a normal number adds 1 to the exponent field, a subnormal number has none.
  const auto significand =
      static_cast<std::uint32_t>(std::ldexp(std::abs(x), fraction_bits - exponent));
  const auto field = static_cast<std::uint32_t>(exponent - format.min_exponent);
  return sign | ((field << fraction_bits) + significand);
}

inline double Decoded(std::uint32_t bits, DType dtype) {
  const Format format = FormatOf(dtype);
  const int fraction_bits = format.precision - 1;
  const std::uint32_t infinity = ((1U << (format.bits - format.precision)) - 1U) << fraction_bits;
  const std::uint32_t magnitude = bits & ((1U << (format.bits - 1)) - 1U);
  const double sign = (bits >> (format.bits - 1)) != 0U ? -1.0 : 1.0;
  if (magnitude > infinity) return kNaN;
  if (magnitude == infinity) return sign * kInfinity;
  const auto field = static_cast<int>(magnitude >> fraction_bits);
  const std::uint32_t fraction = magnitude & ((1U << fraction_bits) - 1U);
  const std::uint32_t hidden = field > 0 ? 1U << fraction_bits : 0U;
  return sign * std::ldexp(static_cast<double>(hidden | fraction),
                           format.min_exponent + std::max(field - 1, 0) - fraction_bits);
}

enum class Layout : std::uint8_t {
  kContiguous,     ///< (B, H, N, D)
  kBnhd,           ///< (B, N, H, D) in memory
  kGaps,           ///< gaps between rows, heads and batch entries
  kReversed,       ///< negative strides of B, H and N
  kOneHead,        ///< one head in memory, expanded by stride 0 (inputs only)
  kOneBatch,       ///< one batch entry in memory, expanded by stride 0 (inputs only)
  kHeadsReversed,  ///< (B, N, H, D) in memory, heads from last to first
  kColumns         ///< (B, H, D, N) in memory: the last dimension is strided (masks only)
};

/// (B, H, N, D) elements in memory that is exactly as long as the layout reaches, so that address
/// sanitizer sees a read past either end. Elements that belong to no row are NaN patterns.
class Tensor {
 public:
  using Index = std::array<std::int64_t, 4>;

  Tensor() = default;
  Tensor(DType dtype, Index shape, Layout layout = Layout::kContiguous)
      : dtype_(dtype), shape_(shape) {
    const auto [b, h, n, d] = shape;
    switch (layout) {
      case Layout::kContiguous:
        strides_ = {h * n * d, n * d, d, 1};
        break;
      case Layout::kBnhd:
        strides_ = {n * h * d, d, h * d, 1};
        break;
      case Layout::kGaps:
        strides_ = {h * (n * (d + 3) + 5) + 7, n * (d + 3) + 5, d + 3, 1};
        break;
      case Layout::kReversed:
        strides_ = {-h * n * d, -n * d, -d, 1};
        break;
      case Layout::kOneHead:
        strides_ = {n * d, 0, d, 1};
        break;
      case Layout::kOneBatch:
        strides_ = {0, n * d, d, 1};
        break;
      case Layout::kHeadsReversed:
        strides_ = {n * h * d, -d, h * d, 1};
        break;
      case Layout::kColumns:
        strides_ = {h * n * d, n * d, 1, n};
        break;
    }
    std::int64_t low = 0;
    std::int64_t high = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      if (shape[i] == 0) return;
      (strides_[i] < 0 ? low : high) += (shape[i] - 1) * strides_[i];
    }
    origin_ = -low;
    memory_.assign(static_cast<std::size_t>((high - low + 1) * SizeOf(dtype)), kGap);
  }

  const Index& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  const std::vector<std::byte>& memory() const { return memory_; }
  TensorView view() const {
    return {memory_.data() + origin_ * SizeOf(dtype_), dtype_, 4, shape_, strides_};
  }
  MutableTensorView mutable_view() {
    return {memory_.data() + origin_ * SizeOf(dtype_), dtype_, 4, shape_, strides_};
  }

  double at(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t c) const {
    std::uint32_t bits = 0;
    std::memcpy(&bits, memory_.data() + Offset(b, h, i, c), ElementSize());
    if (dtype_ == DType::kBool) return bits != 0 ? 1.0 : 0.0;
    return Decoded(bits, dtype_);
  }
  /// Rounds to the dtype.
  void set(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t c, double value) {
    const std::uint32_t bits =
        dtype_ == DType::kBool ? (value != 0.0 ? 1U : 0U) : Encoded(Rounded(value, dtype_), dtype_);
    std::memcpy(memory_.data() + Offset(b, h, i, c), &bits, ElementSize());
  }
  /// body(b, h, i, c) for every element.
  template <class Body>
  void ForEach(const Body& body) const {
    for (std::int64_t b = 0; b < shape_[0]; ++b) {
      for (std::int64_t h = 0; h < shape_[1]; ++h) {
        for (std::int64_t i = 0; i < shape_[2]; ++i) {
          for (std::int64_t c = 0; c < shape_[3]; ++c) body(b, h, i, c);
        }
      }
    }
  }
  void FillNormal(Random& random, double deviation = 1.0) {
    ForEach([&](auto b, auto h, auto i, auto c) { set(b, h, i, c, deviation * random.Normal()); });
  }
  void FillRow(std::int64_t b, std::int64_t h, std::int64_t i, double value) {
    for (std::int64_t c = 0; c < shape_[3]; ++c) set(b, h, i, c, value);
  }
  double RowNorm(std::int64_t b, std::int64_t h, std::int64_t i) const {
    double sum = 0.0;
    for (std::int64_t c = 0; c < shape_[3]; ++c) sum += at(b, h, i, c) * at(b, h, i, c);
    return std::sqrt(sum);
  }
  /// Bytes that belong to no element still hold what they held at first.
  bool GapsUntouched() const {
    std::vector<bool> is_element(memory_.size());
    ForEach([&](auto b, auto h, auto i, auto c) {
      for (std::size_t k = 0; k < ElementSize(); ++k) is_element[Offset(b, h, i, c) + k] = true;
    });
    for (std::size_t k = 0; k < memory_.size(); ++k) {
      if (!is_element[k] && memory_[k] != kGap) return false;
    }
    return true;
  }

 private:
  static constexpr std::byte kGap{0xFF};  // NaN in every dtype

  std::size_t ElementSize() const { return static_cast<std::size_t>(SizeOf(dtype_)); }
  std::size_t Offset(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t c) const {
    return static_cast<std::size_t>(origin_ + b * strides_[0] + h * strides_[1] + i * strides_[2] +
                                    c * strides_[3]) *
           ElementSize();
  }

  DType dtype_ = DType::kFloat32;
  Index shape_{};
  Index strides_{};
  std::int64_t origin_ = 0;  ///< elements before the first of the view
  std::vector<std::byte> memory_;
};

}  // namespace smyrf::testing
