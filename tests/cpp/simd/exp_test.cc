// Exact: the executors' exponential against the standard library's, on every instruction set.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

#include "simd/kernels.h"
#include "testing/instruction_sets.h"

namespace smyrf::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<float> Exps(const std::vector<float>& x) {
  std::vector<float> result(x.size(), -1.0F);
  kernels::Exp(x.data(), result.data(), static_cast<std::int64_t>(x.size()));
  return result;
}

/// Every `step`-th float from 0 down to -largest, and -largest.
std::vector<float> Negative(float largest, std::uint32_t step) {
  std::vector<float> x;
  const auto last = std::bit_cast<std::uint32_t>(largest);
  for (std::uint32_t bits = 0; bits < last; bits += step) x.push_back(-std::bit_cast<float>(bits));
  x.push_back(-largest);
  return x;
}

TEST(Exp, IsWithinItsBound) {
  // 2^y has relative error 2e-7. y = x log2(e): its rounding (2^-24) and the constant's own error
  // (1.34e-8) count |x| times.
  std::vector<float> x = Negative(87.0F, 1501);
  for (const float more : Negative(1.0F, 5003)) x.push_back(more - 86.9F);
  const std::vector<double> exact = [&] {
    std::vector<double> values;
    values.reserve(x.size());
    for (const float value : x) values.push_back(std::exp(static_cast<double>(value)));
    return values;
  }();
  ForEachInstructionSet([&] {
    const std::vector<float> result = Exps(x);
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (x[i] * std::numbers::log2e_v<float> < -125.49F) continue;
      const double bound = exact[i] * (2e-7 + std::abs(x[i]) * (0x1p-24 + 1.34e-8));
      ASSERT_LE(std::abs(result[i] - exact[i]), bound) << "x = " << x[i];
    }
  });
}

TEST(Exp, VanishesWhereResultsAreNoLongerNormal) {
  // Below 2^-125.5: exactly 0, never a number so small that it slows the machine down.
  std::vector<float> x{-kInfinity, std::numeric_limits<float>::lowest(), -1e30F, -1000.0F, -88.0F};
  for (int i = 0; i < 10000; ++i) x.push_back(-86.995F - 0.01F * static_cast<float>(i));
  ForEachInstructionSet([&] {
    for (const float result : Exps(x)) ASSERT_EQ(result, 0.0F);
    for (const float result : Exps(Negative(90.0F, 1013))) {
      ASSERT_TRUE(result == 0.0F || std::isnormal(result)) << result;
    }
  });
}

TEST(Exp, IsExactAtZeroAndNeverAboveOne) {
  const std::vector<float> x = Negative(1.0F, 999);
  ForEachInstructionSet([&] {
    const std::vector<float> result = Exps(x);
    ASSERT_EQ(result[0], 1.0F);
    // Weights just below the largest may round up by the polynomial's error, no further.
    for (const float value : result) ASSERT_LE(value, 1.0F + 2e-7F);
  });
}

TEST(Exp, PassesNaNOnInEveryLane) {
  ForEachInstructionSet([&] {
    for (std::size_t length = 1; length <= 40; ++length) {
      for (std::size_t at = 0; at < length; ++at) {
        std::vector<float> x(length, -0.5F);
        x[at] = at % 2 == 0 ? kNaN : -kNaN;
        const std::vector<float> result = Exps(x);
        for (std::size_t i = 0; i < length; ++i) ASSERT_EQ(std::isnan(result[i]), i == at);
      }
    }
  });
}

}  // namespace
}  // namespace smyrf::testing
