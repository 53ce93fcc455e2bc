// Exact: the counter-based generator and the normal transform.
#include "base/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

namespace smyrf {
namespace {

/// SplitMix64 as it is published: a stateful generator.
class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t state) : state_(state) {}
  std::uint64_t Next() {
    state_ += kGolden;
    return Mix(state_);
  }
  static std::uint64_t Mix(std::uint64_t z) {
    z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31U);
  }
  static constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15U;

 private:
  std::uint64_t state_;
};

TEST(RandomBits, IsSplitMix64OfStreamAndSeed) {
  // Published outputs for the seed 1234567 pin the generator that the library is compared with.
  SplitMix64 published(1234567);
  EXPECT_EQ(published.Next(), 6457827717110365317U);
  EXPECT_EQ(published.Next(), 3203168211198807973U);
  EXPECT_EQ(published.Next(), 9817491932198370423U);
  for (const std::uint64_t seed : {0ULL, 1ULL, 0xFFFFFFFFFFFFFFFFULL}) {
    for (const std::uint64_t stream : {0ULL, 7ULL, 4095ULL}) {
      const std::uint64_t of_seed = SplitMix64::Mix(seed + SplitMix64::kGolden);
      SplitMix64 generator(SplitMix64::Mix(of_seed + stream * SplitMix64::kGolden));
      for (std::uint64_t counter = 0; counter < 20; ++counter) {
        EXPECT_EQ(RandomBits(seed, stream, counter), generator.Next());
      }
    }
  }
}

TEST(RandomBits, DoNotRepeatOverSeedsStreamsAndCounters) {
  std::vector<std::uint64_t> all;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    for (std::uint64_t stream = 0; stream < 20; ++stream) {
      for (std::uint64_t counter = 0; counter < 50; ++counter) {
        all.push_back(RandomBits(seed, stream, counter));
      }
    }
  }
  std::sort(all.begin(), all.end());
  // 20000 numbers of 64 bits: a repeat by chance has probability 1e-11.
  EXPECT_EQ(std::adjacent_find(all.begin(), all.end()), all.end());
}

TEST(PortableLog, AgreesWithTheLibrary) {
  EXPECT_EQ(PortableLog(1.0), 0.0);
  double worst = 0.0;
  const auto check = [&](double x) {
    const long double exact = std::log(static_cast<long double>(x));
    const auto error = std::abs((static_cast<long double>(PortableLog(x)) - exact) / exact);
    worst = std::max(worst, static_cast<double>(error));
  };
  for (int e = -1074; e < 1024; ++e) check(std::ldexp(1.0 + 0.9 * std::sin(e), e));
  for (int i = 1; i < 20000; ++i) check(static_cast<double>(i) / 10000.5);
  for (int k = 1; k <= 52; ++k) {
    check(1.0 + std::ldexp(1.0, -k));
    check(1.0 - std::ldexp(1.0, -k - 1));
  }
  EXPECT_LT(worst, 1e-15);
}

/// What a stream gives: exactly (by rational arithmetic and a logarithm of 50 digits, apart from
/// the library), and the library's double next to it.
struct Expected {
  std::uint64_t seed, stream;
  std::array<double, 4> exact, value;
};
constexpr Expected kExpected[] = {
    {0,
     0,
     {-0x1.bd02818d7577cp-1, -0x1.c2610c54c797ep+0, 0x1.fd7b615550cffp+0, -0x1.6db1b4be305ffp-2},
     {-0x1.bd02818d7577cp-1, -0x1.c2610c54c797ep+0, 0x1.fd7b615550cfep+0, -0x1.6db1b4be306p-2}},
    {0,
     1,
     {-0x1.1e58c9686da3ep-2, 0x1.1a3baafbee4cdp+0, 0x1.5bc783e4476f6p-3, -0x1.18a8c02321a6ap+0},
     {-0x1.1e58c9686da3dp-2, 0x1.1a3baafbee4cdp+0, 0x1.5bc783e4476f7p-3, -0x1.18a8c02321a6ap+0}},
    {42,
     7,
     {-0x1.61164c75fa042p-4, 0x1.2551c52e46b0ap+0, 0x1.23bb59f35aa86p+0, -0x1.090e17fd8de4dp-1},
     {-0x1.61164c75fa042p-4, 0x1.2551c52e46b0ap+0, 0x1.23bb59f35aa86p+0, -0x1.090e17fd8de4ep-1}},
};

TEST(NormalStream, HasTheseValuesEverywhere) {
  for (const Expected& expected : kExpected) {
    NormalStream normal(expected.seed, expected.stream);
    for (std::size_t i = 0; i < 4; ++i) {
      const double value = normal.Next();
      EXPECT_EQ(value, expected.value[i]);  // the same bits with every compiler and machine
      // Logarithm, product, quotient, root and product: at most 3 units in the last place.
      EXPECT_NEAR(value, expected.exact[i], 3 * 0x1p-52 * std::abs(expected.exact[i]));
    }
  }
}

TEST(NormalStream, IsStandardNormal) {
  constexpr std::size_t kCount = 200000;
  const double n = kCount;
  std::vector<double> x(kCount);
  NormalStream normal(3, 5);
  NormalStream neighbour(3, 6);
  double sum = 0.0;
  double square = 0.0;
  double fourth = 0.0;
  double product = 0.0;
  double lagged = 0.0;
  double before = 0.0;
  for (double& value : x) {
    value = normal.Next();
    sum += value;
    square += value * value;
    fourth += value * value * value * value;
    product += value * neighbour.Next();
    lagged += value * before;
    before = value;
  }
  // Five standard deviations of each estimate: 1, sqrt(2), sqrt(96) and 1 over sqrt(n).
  const double five = 5.0 / std::sqrt(n);
  EXPECT_NEAR(sum / n, 0.0, five);
  EXPECT_NEAR(square / n, 1.0, std::sqrt(2.0) * five);
  EXPECT_NEAR(fourth / n, 3.0, std::sqrt(96.0) * five);
  EXPECT_NEAR(product / n, 0.0, five);
  EXPECT_NEAR(lagged / n, 0.0, five);
  // Kolmogorov-Smirnov: sqrt(n) times the largest distance is above 2.2 once in 8000 streams.
  std::sort(x.begin(), x.end());
  double distance = 0.0;
  for (std::size_t i = 0; i < kCount; ++i) {
    const double probability = 0.5 * std::erfc(-x[i] / std::numbers::sqrt2);
    distance = std::max({distance, probability - static_cast<double>(i) / n,
                         static_cast<double>(i + 1) / n - probability});
  }
  EXPECT_LT(std::sqrt(n) * distance, 2.2);
}

}  // namespace
}  // namespace smyrf
