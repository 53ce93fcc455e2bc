// Working memory of one thread: grows to what the largest call needed and is then reused, so that a
// small call allocates nothing.
#pragma once

#include <cstddef>
#include <new>

#include "hwy/aligned_allocator.h"

namespace smyrf::kernels {

/// Cache-line aligned floats; contents are unspecified after Need.
class Buffer {
 public:
  float* Need(std::size_t count) {
    if (count > size_) {
      data_ = hwy::AllocateAligned<float>(count);
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = count;
    }
    return data_.get();
  }

 private:
  hwy::AlignedFreeUniquePtr<float[]> data_;
  std::size_t size_ = 0;
};

/// The calling thread's own Scratch, a struct of Buffers and the like; one a type.
template <class Scratch>
Scratch& OfThread() {
  thread_local Scratch scratch;
  return scratch;
}

}  // namespace smyrf::kernels
