// Whether two views share memory.
#pragma once

#include <cstdint>

#include "smyrf/tensor.h"

namespace smyrf {

enum class Sharing : std::uint8_t {
  kNone,     ///< no byte
  kSome,     ///< at least one byte
  kUnknown,  ///< strides too irregular to tell in bounded time
};

/// Exact for views of any strides that nest as those of a tensor's slices and transposes do: each
/// about as large as all smaller ones reach, or larger. Sizes and strides must be checked before:
/// no offset may overflow.
Sharing SharedMemory(const TensorView& view, const TensorView& other);

}  // namespace smyrf
