// Working memory of one thread: grows to what the largest call needed and is then reused, so that a
// small call allocates nothing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "hwy/aligned_allocator.h"

namespace smyrf::kernels {

/// Cache-line aligned floats; contents are unspecified after Need.
class Buffer {
 public:
  std::size_t size() const { return size_; }
  const float* data() const { return data_.get(); }

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

/// Uninitialised floats for a part of a call. A thread keeps the memory of small ones for its next:
/// the first touch of fresh pages costs more than what `tree` does with them.
class Floats {
 public:
  Floats() = default;
  explicit Floats(std::int64_t count) {
    const auto wanted = static_cast<std::size_t>(count);
    std::vector<Buffer>& kept = OfThread<Kept>().buffers;
    for (std::size_t i = 0; i < kept.size(); ++i) {
      if (kept[i].size() < wanted || kept[i].size() / 2 > wanted) continue;
      buffer_ = std::move(kept[i]);
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(i));
      break;
    }
    data_ = buffer_.Need(wanted);
  }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  Floats(Floats&& other) noexcept
      : buffer_(std::move(other.buffer_)), data_(std::exchange(other.data_, nullptr)) {}
  Floats& operator=(Floats&& other) noexcept {
    std::swap(buffer_, other.buffer_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Floats() {
    if (data_ == nullptr || buffer_.size() > kMostFloats) return;
    std::vector<Buffer>& kept = OfThread<Kept>().buffers;
    if (kept.size() == kMostKept) kept.erase(kept.begin());
    kept.push_back(std::move(buffer_));
  }

  float* get() const { return data_; }

 private:
  static constexpr std::size_t kMostFloats = std::size_t{1} << 20;
  static constexpr std::size_t kMostKept = 16;
  struct Kept {
    Kept() { buffers.reserve(kMostKept); }
    std::vector<Buffer> buffers;
  };

  Buffer buffer_;
  float* data_ = nullptr;
};

inline Floats Zeros(std::int64_t count) {
  Floats floats(count);
  std::fill_n(floats.get(), count, 0.0F);
  return floats;
}

}  // namespace smyrf::kernels
