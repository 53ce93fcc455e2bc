// Exact and hostile: memory that threads keep.
#include "kernels/scratch.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>
#include <thread>
#include <utility>

namespace {

std::atomic<std::int64_t> allocations{0};

}  // namespace

// Out of line: where both are inlined, GCC takes them for a pair that does not match.
// NOLINTBEGIN(cppcoreguidelines-no-malloc)
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t /*size*/) noexcept {
  std::free(memory);
}
// NOLINTEND(cppcoreguidelines-no-malloc)

namespace smyrf::testing {
namespace {

using kernels::Floats;

TEST(Floats, EndWithoutAllocating) {
  // In a thread that made none: the work of one may end on another, out of memory as it may be.
  for (const std::int64_t count : {1, 1000, 1 << 21}) {
    std::optional<Floats> floats{Floats(count)};
    std::int64_t before = -1;
    std::int64_t after = -2;
    std::thread([&] {
      before = allocations;
      floats.reset();
      after = allocations;
    }).join();
    EXPECT_EQ(before, after) << count;
  }
}

TEST(Floats, AreTakenAgainByTheirThread) {
  const float* first = nullptr;
  std::thread([&] {
    first = Floats(1000).get();
    const Floats large(3000);  // does not fit
    const Floats again(900);
    EXPECT_NE(large.get(), first);
    EXPECT_EQ(again.get(), first);
    // Twenty end at once: the last sixteen are kept.
    std::array<Floats, 20> many;
    for (Floats& one : many) one = Floats(5000);
    std::array<const float*, 20> at{};
    for (std::size_t i = 0; i < many.size(); ++i) at[i] = many[i].get();
    for (Floats& one : many) Floats(std::move(one));
    for (std::size_t i = 4; i < many.size(); ++i) {
      many[i] = Floats(5000);
      EXPECT_EQ(many[i].get(), at[i]) << i;
    }
  }).join();
}

TEST(Floats, OutliveTheThreadThatMadeThem) {
  Floats floats;
  std::thread([&] {
    floats = Floats(100);
    floats.get()[99] = 1.0F;
  }).join();
  EXPECT_EQ(floats.get()[99], 1.0F);
}

}  // namespace
}  // namespace smyrf::testing
