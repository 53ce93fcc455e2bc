// Strided views of the caller's memory. The library never owns or copies what they point to.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

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

/// A C-contiguous view: `Contiguous(data, DType::kFloat32, {B, H, N, D})`.
template <class Void>
constexpr BasicTensorView<Void> Contiguous(Void* data, DType dtype,
                                           std::initializer_list<std::int64_t> shape) {
  BasicTensorView<Void> view{data, dtype, static_cast<int>(shape.size()), {}, {}};
  int i = 0;
  for (std::int64_t n : shape) view.shape[static_cast<std::size_t>(i++)] = n;
  std::int64_t stride = 1;
  while (i-- > 0) {
    view.strides[static_cast<std::size_t>(i)] = stride;
    stride *= view.shape[static_cast<std::size_t>(i)];
  }
  return view;
}

}  // namespace smyrf
