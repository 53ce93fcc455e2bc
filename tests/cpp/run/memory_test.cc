// Exact and hostile: memory that threads keep, and that calls take.
#include "base/workspace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "testing/gradients.h"
#include "testing/plan_rows.h"

// Address sanitizer has these operators to itself.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SMYRF_COUNTS_MEMORY 0
#endif
#endif
#if !defined(SMYRF_COUNTS_MEMORY)
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#define SMYRF_COUNTS_MEMORY 1
#else
#define SMYRF_COUNTS_MEMORY 0
#endif
#endif

#if SMYRF_COUNTS_MEMORY
#include <malloc.h>

namespace {

std::atomic<std::int64_t> allocations{0};
std::atomic<std::int64_t> live{0};  // bytes
std::atomic<std::int64_t> peak{0};

void Count(void* memory, std::int64_t sign) {
  const std::int64_t now = live += sign * static_cast<std::int64_t>(malloc_usable_size(memory));
  std::int64_t most = peak;
  while (now > most && !peak.compare_exchange_weak(most, now)) {
  }
}

}  // namespace

// Out of line: where both are inlined, GCC takes them for a pair that does not match.
// NOLINTBEGIN(cppcoreguidelines-no-malloc)
[[gnu::noinline]] void* operator new(std::size_t size) {
  void* memory = std::malloc(size > 0 ? size : 1);
  if (memory == nullptr) throw std::bad_alloc();
  ++allocations;
  Count(memory, 1);
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  if (memory != nullptr) Count(memory, -1);
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t /*size*/) noexcept {
  operator delete(memory);
}
// NOLINTEND(cppcoreguidelines-no-malloc)
#endif

namespace smyrf::testing {
namespace {

using kernels::Floats;

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

#if SMYRF_COUNTS_MEMORY
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

/// Bytes that body holds at most, beyond what was held before.
template <class Body>
std::int64_t PeakOf(const Body& body) {
  const std::int64_t before = live;
  peak = before;
  body();
  return peak - before;
}

TEST(Memory, DenseListsNoWork) {
  // Vectors alone: tiles and gradients by keys are the kernels' own memory.
  Random random(280);
  std::vector<std::int64_t> forward;
  std::vector<std::int64_t> backward;
  for (const std::int64_t queries : {1000, 12000}) {
    Call call({1, 8, 1, queries, queries, 4, 4});
    call.FillNormal(random);
    call.options.method = Method::kDense;
    call.options.window = Window{8, 0};
    call.options.num_threads = 1;
    Result result = Attend(call);
    forward.push_back(PeakOf([&] {
      attention(call.arguments(), call.options, {result.out.mutable_view(), {}, nullptr, nullptr});
    }));
    const Upstream upstream = RandomUpstream(random, call, false);
    GradientTensors gradients(call);
    const auto lse = Contiguous<const void>(result.lse.data(), DType::kFloat32, {1, 8, queries});
    backward.push_back(PeakOf([&] {
      attention_backward(call.arguments(), call.options, result.out.view(), lse,
                         upstream.out.view(), std::nullopt, gradients.views());
    }));
  }
  EXPECT_LT(forward[1], forward[0] + 1000);
  EXPECT_LT(backward[1], backward[0] + 1000);
  EXPECT_LT(std::max(forward[1], backward[1]), 10000);
}

TEST(Memory, ChecksOfAPlanTakeAsMuchAsItsLists) {
  // Of nearly 2^31 rows, as the plan says, few are valid.
  constexpr std::int32_t kLast = std::numeric_limits<std::int32_t>::max() - 1;
  Random random(281);
  Call call({2, 2, 1, 300, 300, 4, 4});
  call.FillNormal(random);
  call.query_padding_mask.emplace(DType::kBool, Tensor::Index{1, 1, 2, 300});
  call.query_padding_mask->set(0, 0, 1, 3, 0.0);
  call.key_padding_mask = call.query_padding_mask;
  for (const Method method : {Method::kLsh, Method::kTree}) {
    call.options.method = method;
    if (method == Method::kTree) call.options.max_density = 0.8;  // not dense
    PlanParts parts = PlanOf(call);
    ASSERT_FALSE(parts.heads.back().blocks.empty());
    parts.queries = parts.keys = std::int64_t{kLast} + 1;
    const auto move_last = [&](std::vector<std::int32_t>& rows) {
      std::replace(rows.begin(), rows.end(), 299, kLast);
    };
    for (std::size_t b = 0; b < 2; ++b) {
      move_last(parts.valid_queries[b]);
      move_last(parts.valid_keys[b]);
    }
    for (HeadPlan& head : parts.heads) {
      move_last(head.query_order);
      move_last(head.key_order);
    }
    for (KeyForest& forest : parts.forests) {
      move_last(forest.key_order);
      forest.segments.back().last_key = kLast + 1;
    }
    const auto check = [&](const PlanParts& given) {
      const std::string bytes = Pack(PlanParts(given)).to_bytes();
      return PeakOf([&] { Plan::from_bytes(bytes); });
    };
    EXPECT_LT(check(parts), 1 << 20) << static_cast<int>(method);
    if (method != Method::kLsh) continue;
    for (const std::int32_t wrong : {-1, 3, 299, kLast}) {  // the last is there already
      PlanParts damaged = parts;
      damaged.heads.back().key_order[0] = wrong;
      if (parts.heads.back().key_order[0] == wrong) damaged.heads.back().key_order[1] = wrong;
      EXPECT_THROW(check(damaged), Error) << wrong;
    }
  }
}
#endif

}  // namespace
}  // namespace smyrf::testing
