// Working memory of one thread: grows to what the largest call needed and is then reused, so that a
// small call allocates nothing.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

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
    buffer_ = OfThread<Kept>().Take(wanted);
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
    if (data_ == nullptr || buffer_.size() > kMostFloats || kept_of_thread == nullptr) return;
    kept_of_thread->Put(std::move(buffer_));
  }

  float* get() const { return data_; }

 private:
  static constexpr std::size_t kMostFloats = std::size_t{1} << 20;

  /// The last that a thread put back, which it made its first Floats before: a thread that only
  /// ends others' keeps nothing, since a destructor must not allocate.
  class Kept {
   public:
    Kept() { kept_of_thread = this; }
    Kept(const Kept&) = delete;
    Kept& operator=(const Kept&) = delete;
    Kept(Kept&&) = delete;
    Kept& operator=(Kept&&) = delete;
    ~Kept() { kept_of_thread = nullptr; }

    /// The oldest that holds `wanted` floats and not more than twice as many, if there is one.
    Buffer Take(std::size_t wanted) {
      for (Buffer* at = buffers_.data(); at != buffers_.data() + count_; ++at) {
        if (at->size() < wanted || at->size() / 2 > wanted) continue;
        Buffer found = std::move(*at);
        Remove(at);
        return found;
      }
      return {};
    }
    void Put(Buffer buffer) {
      if (count_ == buffers_.size()) Remove(buffers_.data());
      buffers_[count_++] = std::move(buffer);
    }

   private:
    void Remove(Buffer* at) {
      std::move(at + 1, buffers_.data() + count_, at);
      --count_;
    }

    std::array<Buffer, 16> buffers_;  ///< the first count_, oldest first
    std::size_t count_ = 0;
  };

  inline static constinit thread_local Kept* kept_of_thread = nullptr;

  Buffer buffer_;
  float* data_ = nullptr;
};

inline Floats Zeros(std::int64_t count) {
  Floats floats(count);
  std::fill_n(floats.get(), count, 0.0F);
  return floats;
}

}  // namespace smyrf::kernels
