// Strided views of the caller's memory. The library never owns or copies what they point to.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>

#include "smyrf/error.h"

namespace smyrf {

enum class DType : std::uint8_t { kFloat32, kFloat16, kBFloat16, kBool };

/// Bytes of one element.
constexpr std::int64_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kBool:
      return 1;
  }
  return 0;
}

/// A view of at most four dimensions. `strides` count elements, may be zero (broadcast) or
/// negative. Query, key, value and outputs need a last stride of 1; masks may have any strides. A
/// bool element is one byte, zero or not zero.
template <class Void>
struct BasicTensorView {
  Void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;
  std::array<std::int64_t, 4> shape{};
  std::array<std::int64_t, 4> strides{};
};

using TensorView = BasicTensorView<const void>;
using MutableTensorView = BasicTensorView<void>;

namespace internal {

[[noreturn]] inline void RefuseShape(std::initializer_list<std::int64_t> shape, const char* why) {
  std::string text = "Contiguous: got shape (";
  const char* separator = "";
  for (const std::int64_t n : shape) {
    text += separator + std::to_string(n);
    separator = ", ";
  }
  throw Error(ErrorKind::kValue, text + (shape.size() == 1 ? ",), " : "), ") + why);
}

}  // namespace internal

/// A C-contiguous view: `Contiguous(data, DType::kFloat32, {B, H, N, D})`. Throws Error for more
/// than four dimensions, a negative size, and more bytes than 64 bits count (sizes of 0 count as 1
/// there, since strides are products of the others).
template <class Void>
constexpr BasicTensorView<Void> Contiguous(Void* data, DType dtype,
                                           std::initializer_list<std::int64_t> shape) {
  BasicTensorView<Void> view{data, dtype, static_cast<int>(shape.size()), {}, {}};
  if (shape.size() > view.shape.size()) internal::RefuseShape(shape, "at most 4 dimensions");
  std::int64_t bytes = SizeOf(dtype) > 0 ? SizeOf(dtype) : 1;
  std::size_t i = 0;
  for (const std::int64_t n : shape) {
    if (n < 0) internal::RefuseShape(shape, "sizes must be 0 or more");
    if (n > 0 && bytes > std::numeric_limits<std::int64_t>::max() / n) {
      internal::RefuseShape(shape, "which is more than any memory holds");
    }
    bytes *= n > 0 ? n : 1;
    view.shape[i++] = n;
  }
  std::int64_t stride = 1;
  while (i-- > 0) {
    view.strides[i] = stride;
    stride *= view.shape[i];
  }
  return view;
}

}  // namespace smyrf
