// Exact: the same bits whatever floating-point environment the caller has set, which stays as it
// is.
#include "base/float_environment.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cfenv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/half.h"
#include "base/parallel.h"
#include "methods/tree/kernels/nodes.h"
#include "testing/everything.h"
#include "testing/gradients.h"
#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace smyrf::testing {
namespace {

constexpr int kTraps = FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW;

/// What a caller may have set.
struct Environment {
  int rounding = FE_TONEAREST;
  bool flush = false;  ///< subnormal numbers, read or made, are 0
  bool traps = false;  ///< divisions by 0, overflows and invalid operations end the process

  void Set() const {
    std::fesetround(rounding);
#if defined(__GLIBC__)
    fedisableexcept(FE_ALL_EXCEPT);
    if (traps) feenableexcept(kTraps);
#endif
#if defined(__SSE2__)
    constexpr unsigned kFlush = 0x8040U;
    _mm_setcsr((_mm_getcsr() & ~kFlush) | (flush ? kFlush : 0U));
#elif defined(__aarch64__)
    constexpr std::uint64_t kFlush = std::uint64_t{1} << 24;
    std::uint64_t control = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    control = (control & ~kFlush) | (flush ? kFlush : 0U);
    __asm__ volatile("msr fpcr, %0" : : "r"(control));
#endif
  }
  bool IsSet() const {
    // A step that depends on each of them, and that the compiler can't do beforehand.
    const volatile float smallest = std::numeric_limits<float>::denorm_min();
#if defined(__GLIBC__)
    if (fegetexcept() != (traps ? kTraps : 0)) return false;
#endif
    return std::fegetround() == rounding && (smallest * 1.0F == 0.0F) == (flush && CanFlush());
  }
  static bool CanFlush() {
#if defined(__SSE2__) || defined(__aarch64__)
    return true;
#else
    return false;
#endif
  }
};

/// As a caller's for as long as it lives.
class CallersEnvironment {
 public:
  explicit CallersEnvironment(const Environment& environment) { environment.Set(); }
  CallersEnvironment(const CallersEnvironment&) = delete;
  CallersEnvironment& operator=(const CallersEnvironment&) = delete;
  CallersEnvironment(CallersEnvironment&&) = delete;
  CallersEnvironment& operator=(CallersEnvironment&&) = delete;
  ~CallersEnvironment() { Environment{}.Set(); }
};

const Environment kEnvironments[] = {{FE_TONEAREST, true, false},
                                     {FE_UPWARD, false, true},
                                     {FE_DOWNWARD, true, true},
                                     {FE_TOWARDZERO, false, false}};

/// Small enough for subnormal elements, sums and products.
Call SmallCall(Random& random, Method method, DType dtype, std::int64_t queries,
               std::int64_t keys) {
  Call call({1, 2, 1, queries, keys, 16, 12}, dtype);
  FillSmooth(random, call);
  const double factor = dtype == DType::kFloat16 ? 2e-5 : 1e-38;
  call.value.ForEach(
      [&](auto... at) { call.value.set(at..., factor * (call.value.at(at...) - 1.0)); });
  if (dtype == DType::kFloat16) {
    call.query.ForEach([&](auto... at) { call.query.set(at..., factor * call.query.at(at...)); });
    call.options.scale = 2e4;
  }
  call.options.method = method;
  if (method == Method::kLsh) call.options.cluster_size = 50;
  if (method == Method::kTree) call.options.max_density = 0.6;
  return call;
}

// Else a run of all tests beside the preloaded library would prove nothing.
TEST(FloatEnvironment, OfEveryThreadIsTheOneThatTheRunAsksFor) {
  const char* preloaded = std::getenv("LD_PRELOAD");
  Environment environment;
  environment.flush = preloaded != nullptr && std::strstr(preloaded, "flush_subnormals") != nullptr;
  EXPECT_TRUE(environment.IsSet());
  const FloatEnvironment defaults;
  std::thread([&] { EXPECT_TRUE(environment.IsSet()); }).join();
}

TEST(FloatEnvironment, IsTheDefaultWhileItLivesAndTheCallersAfterwards) {
  for (const Environment& environment : kEnvironments) {
    const CallersEnvironment callers(environment);
    ASSERT_TRUE(environment.IsSet());
    {
      const FloatEnvironment defaults;
      EXPECT_TRUE(Environment{}.IsSet());
    }
    EXPECT_TRUE(environment.IsSet());
    for (const int threads : {1, 2, 3}) {
      std::atomic<int> wrong{0};
      ParallelFor(40, smyrf::Run(threads),
                  [&](std::int64_t) { wrong += Environment{}.IsSet() ? 0 : 1; });
      EXPECT_EQ(wrong, 0);
      EXPECT_TRUE(environment.IsSet());
      EXPECT_THROW(ParallelFor(40, smyrf::Run(threads),
                               [](std::int64_t) { throw std::runtime_error("stop"); }),
                   std::runtime_error);
      EXPECT_TRUE(environment.IsSet());
    }
    Call call({1, 1, 1, 2, 2, 2, 2});
    call.options.scale = kNaN;
    EXPECT_THROW((void)Attend(call), Error);
    EXPECT_TRUE(environment.IsSet());
  }
}

TEST(FloatEnvironment, WideningIsExactInEveryone) {
  std::vector<std::uint16_t> all(0x7C00);  // every number of float16 that is not negative
  std::iota(all.begin(), all.end(), std::uint16_t{0});
  const auto* bytes = reinterpret_cast<const std::byte*>(all.data());
  const auto count = std::ssize(all);
  ForEachInstructionSet([&] {
    for (const Environment& environment : kEnvironments) {
      std::vector<float> rows(all.size());
      std::vector<float> elements(all.size());
      {
        const CallersEnvironment callers(environment);
        kernels::GatherRows({bytes, 2 * count, DType::kFloat16}, 0, 1, count, rows.data());
        for (std::size_t i = 0; i < all.size(); ++i) {
          elements[i] = LoadElement(bytes + 2 * i, DType::kFloat16);
        }
      }
      for (std::size_t i = 0; i < all.size(); ++i) {
        ASSERT_EQ(rows[i], Decoded(all[i], DType::kFloat16)) << i;
        ASSERT_EQ(elements[i], Decoded(all[i], DType::kFloat16)) << i;
      }
    }
  });
}

TEST(FloatEnvironment, ChangesNoBitOfAnyCall) {
  Random random(270);
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
      Call call = SmallCall(random, method, dtype, 70, 100);
      const Upstream upstream = RandomUpstream(random, call, true);
      ForEachInstructionSet([&] {
        call.options.num_threads = 1;
        const Everything expected(call, upstream);
        double sum = 0.0;
        expected.result.out.ForEach(
            [&](auto... at) { sum += std::abs(expected.result.out.at(at...)); });
        ASSERT_GT(sum, 0.0);
        for (const auto& head : expected.result.statistics.heads) {
          // Squares of the others' values vanish.
          ASSERT_EQ(head.dense, method == Method::kTree && dtype != DType::kFloat16);
        }
        for (const Environment& environment : kEnvironments) {
          call.options.num_threads = 3 - call.options.num_threads;
          // A thread of its own, whose pool's threads begin with its environment.
          std::thread([&] {
            const CallersEnvironment callers(environment);
            const Everything got(call, upstream);
            EXPECT_TRUE(environment.IsSet());
            EXPECT_TRUE(got.SameBits(expected)) << call;
          }).join();
        }
      });
    }
  }
}

TEST(FloatEnvironment, NothingTrapsWhereNaNAndInfinityAreExpected) {
  Random random(272);
  Call call({1, 2, 2, 30, 20, 16, 12});
  call.FillNormal(random);
  call.options.is_causal = true;  // the first ten queries see nothing
  call.key.set(0, 0, 3, 2, kInfinity);
  call.query.set(0, 0, 25, 2, kNaN);
  call.value.set(0, 1, 4, 2, std::numeric_limits<float>::max());
  const Upstream upstream = RandomUpstream(random, call, true);
  const Everything expected(call, upstream);
  const CallersEnvironment callers({FE_TONEAREST, false, true});
  const Everything got(call, upstream);
  EXPECT_TRUE(got.SameBits(expected));
}

TEST(FloatEnvironment, ChangesNoBitOfReferencesAndEstimates) {
  Random random(271);
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    const Call call = SmallCall(random, method, DType::kFloat16, 20, 100);
    const Upstream upstream = RandomUpstream(random, call, true);
    const auto all = [&] {
      const Exact exact = RunReference(call);
      const ExactGradients gradients = ReferenceBackward(call, upstream);
      std::vector<std::vector<double>> result{exact.out, exact.lse, gradients.query, gradients.key,
                                              gradients.value};
      if (method == Method::kLsh) return result;
      for (const auto& head : estimate(call.arguments(), call.options).heads) {
        result.push_back({head.density, head.expected_error, head.expected_lse_error});
      }
      return result;
    };
    const auto expected = all();
    for (const Environment& environment : kEnvironments) {
      const CallersEnvironment callers(environment);
      const auto got = all();
      EXPECT_TRUE(environment.IsSet());
      EXPECT_EQ(got, expected);
    }
  }
}

}  // namespace
}  // namespace smyrf::testing
