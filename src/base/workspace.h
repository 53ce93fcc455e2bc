// Working memory of threads: it grows to what the largest call needed and is then used again, so
// that a small call allocates nothing. The one place that knows which memory a thread works in.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "smyrf/workspace.h"

namespace smyrf {
class WorkspaceUse;
}  // namespace smyrf

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

/// Bytes that the parts of a Scratch hold.
inline std::int64_t BytesOf(const Buffer& buffer) {
  return static_cast<std::int64_t>(buffer.size() * sizeof(float));
}
template <class Element>
std::int64_t BytesOf(const std::vector<Element>& vector) {
  return static_cast<std::int64_t>(vector.capacity() * sizeof(Element));
}
template <class First, class... Others>
  requires(sizeof...(Others) > 0)
std::int64_t BytesOf(const First& first, const Others&... others) {
  return BytesOf(first) + (BytesOf(others) + ...);
}

/// What one thread works in: a Scratch of each type that was asked for, and arrays that Floats
/// left.
class ThreadMemory {
 public:
  ThreadMemory() = default;
  ThreadMemory(const ThreadMemory&) = delete;
  ThreadMemory& operator=(const ThreadMemory&) = delete;
  ThreadMemory(ThreadMemory&&) = delete;
  ThreadMemory& operator=(ThreadMemory&&) = delete;
  ~ThreadMemory() = default;

  /// Where the calling thread works: in a workspace's part while it serves a call that has one,
  /// else in memory of its own, which ends with it.
  static ThreadMemory& Current() { return current_ != nullptr ? *current_ : MakeOwn(); }
  /// The same, and null where it would have to be made.
  static ThreadMemory* Made() { return current_; }

  template <class Scratch>
  Scratch& Get() {
    const std::size_t at = NumberOf<Scratch>();
    if (at < scratches_.size() && scratches_[at] != nullptr) {
      return static_cast<Holder<Scratch>&>(*scratches_[at]).scratch;
    }
    if (at >= scratches_.size()) scratches_.resize(at + 1);
    scratches_[at] = std::make_unique<Holder<Scratch>>();
    return static_cast<Holder<Scratch>&>(*scratches_[at]).scratch;
  }

  /// The oldest array that holds `wanted` floats and not more than twice as many, if there is one.
  Buffer Take(std::size_t wanted) {
    for (Buffer* at = kept_.data(); at != kept_.data() + kept_count_; ++at) {
      if (at->size() < wanted || at->size() / 2 > wanted) continue;
      Buffer found = std::move(*at);
      Forget(at);
      return found;
    }
    return {};
  }
  /// Keeps an array in place of the oldest. Allocates nothing.
  void Put(Buffer buffer) {
    if (kept_count_ == kept_.size()) Forget(kept_.data());
    kept_[kept_count_++] = std::move(buffer);
  }

  std::int64_t bytes() const;

 private:
  friend class smyrf::WorkspaceUse;

  struct AnyHolder {
    AnyHolder() = default;
    AnyHolder(const AnyHolder&) = delete;
    AnyHolder& operator=(const AnyHolder&) = delete;
    AnyHolder(AnyHolder&&) = delete;
    AnyHolder& operator=(AnyHolder&&) = delete;
    virtual ~AnyHolder() = default;
    virtual std::int64_t bytes() const = 0;
  };
  template <class Scratch>
  struct Holder : AnyHolder {
    std::int64_t bytes() const override {
      return static_cast<std::int64_t>(sizeof(Holder)) + scratch.bytes();
    }
    Scratch scratch;
  };

  /// A number for each type, from 1 on, given when it is first asked for.
  template <class Scratch>
  static std::size_t NumberOf() {
    static constinit std::atomic<std::size_t> number{0};
    const std::size_t known = number.load(std::memory_order_relaxed);
    return known != 0 ? known : GiveNumber(number);
  }
  static std::size_t GiveNumber(std::atomic<std::size_t>& number);
  static ThreadMemory& MakeOwn();

  void Forget(Buffer* at) {
    std::move(at + 1, kept_.data() + kept_count_, at);
    --kept_count_;
  }

  inline static constinit thread_local ThreadMemory* current_ = nullptr;

  std::vector<std::unique_ptr<AnyHolder>> scratches_;  ///< by NumberOf
  std::array<Buffer, 16> kept_;                        ///< the first kept_count_, oldest first
  std::size_t kept_count_ = 0;
  bool in_use_ = false;  ///< a call is at work in it
};

/// The calling thread's own Scratch: a struct of Buffers and the like with `bytes()`; one a type.
template <class Scratch>
Scratch& OfThread() {
  return ThreadMemory::Current().Get<Scratch>();
}

/// Uninitialised floats for a part of a call. A thread keeps the memory of small ones for its next:
/// the first touch of fresh pages costs more than what a method with trees does with them.
class Floats {
 public:
  Floats() = default;
  explicit Floats(std::int64_t count) {
    const auto wanted = static_cast<std::size_t>(count);
    buffer_ = ThreadMemory::Current().Take(wanted);
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
  /// A thread that has no memory yet keeps nothing: a destructor must not allocate.
  ~Floats() {
    if (data_ == nullptr || buffer_.size() > kMostFloats) return;
    if (ThreadMemory* memory = ThreadMemory::Made()) memory->Put(std::move(buffer_));
  }

  float* get() const { return data_; }

 private:
  static constexpr std::size_t kMostFloats = std::size_t{1} << 20;

  Buffer buffer_;
  float* data_ = nullptr;
};

inline Floats Zeros(std::int64_t count) {
  Floats floats(count);
  std::fill_n(floats.get(), count, 0.0F);
  return floats;
}

}  // namespace smyrf::kernels

namespace smyrf {

/// While it lives, the thread that made it works for one call.
class WorkspaceUse {
 public:
  /// Of the thread that makes the call, which has the workspace to itself from now on. Throws Error
  /// where another call has it. Null: in the thread's own memory.
  explicit WorkspaceUse(Workspace* workspace);
  /// Of another thread, or the same, in a section of a call whose caller works in `caller`.
  WorkspaceUse(Workspace* workspace, const kernels::ThreadMemory* caller);
  WorkspaceUse(const WorkspaceUse&) = delete;
  WorkspaceUse& operator=(const WorkspaceUse&) = delete;
  WorkspaceUse(WorkspaceUse&&) = delete;
  WorkspaceUse& operator=(WorkspaceUse&&) = delete;
  ~WorkspaceUse();

 private:
  void Enter(Workspace* workspace);

  Workspace* busy_ = nullptr;                    ///< to be given back as a whole
  Workspace* workspace_ = nullptr;               ///< that `part_` belongs to
  std::unique_ptr<kernels::ThreadMemory> part_;  ///< null: the thread's own memory
  kernels::ThreadMemory* before_ = nullptr;      ///< what the thread worked in
  bool entered_ = false;
};

}  // namespace smyrf
