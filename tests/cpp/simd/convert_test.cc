// Exact: float16 and bfloat16, to and from float32, on every instruction set.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "base/float_environment.h"
#include "base/half.h"
#include "simd/kernels.h"
#include "testing/instruction_sets.h"
#include "testing/tensor.h"

namespace smyrf::testing {
namespace {

constexpr DType kNarrow[] = {DType::kFloat16, DType::kBFloat16};

std::vector<std::uint16_t> Stored(const std::vector<float>& row, DType dtype) {
  std::vector<std::uint16_t> result(row.size());
  kernels::StoreRow(row.data(), static_cast<std::int64_t>(row.size()), dtype,
                    reinterpret_cast<std::byte*>(result.data()));
  return result;
}

TEST(Convert, TheTestsOwnFormatsRoundTrip) {
  for (const DType dtype : kNarrow) {
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
      const double value = Decoded(bits, dtype);
      if (std::isnan(value)) continue;
      ASSERT_EQ(Encoded(value, dtype), bits);
      ASSERT_EQ(Rounded(value, dtype), value);
    }
  }
  EXPECT_EQ(Decoded(0x3C01, DType::kFloat16), 1.0 + 0x1p-10);
  EXPECT_EQ(Decoded(0x0001, DType::kFloat16), 0x1p-24);
  EXPECT_EQ(Decoded(0xFBFF, DType::kFloat16), -65504.0);
  EXPECT_EQ(Decoded(0x3F81, DType::kBFloat16), 1.0 + 0x1p-7);
  EXPECT_EQ(Decoded(0x0001, DType::kBFloat16), 0x1p-133);
  EXPECT_EQ(Decoded(0xC0490FDB, DType::kFloat32), -0x1.921FB6p+1);
}

TEST(Convert, OneElementLoadsExactly) {
  const FloatEnvironment defaults;  // as in the calls; and the comparisons are of subnormal numbers
  for (const DType dtype : kNarrow) {
    std::vector<std::uint16_t> all(0x10000);
    std::iota(all.begin(), all.end(), std::uint16_t{0});
    for (std::uint32_t pattern = 0; pattern < 0x10000; ++pattern) {
      const float value =
          LoadElement(reinterpret_cast<const std::byte*>(all.data() + pattern), dtype);
      const double expected = Decoded(pattern, dtype);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(value)) << pattern;
      } else {
        ASSERT_EQ(value, expected) << pattern;
        ASSERT_EQ(std::signbit(value), std::signbit(expected)) << pattern;
      }
    }
  }
}

TEST(Convert, RowsLoadExactly) {
  const FloatEnvironment defaults;  // as in the calls; and the comparisons are of subnormal numbers
  // Through MaxAbs, which reads rows by vectors and by what is left of them: 37 of one pattern.
  ForEachInstructionSet([&] {
    for (const DType dtype : kNarrow) {
      for (std::uint32_t pattern = 0; pattern < 0x10000; ++pattern) {
        for (const std::size_t length : {1, 37}) {
          const std::vector<std::uint16_t> row(length, static_cast<std::uint16_t>(pattern));
          const kernels::Rows rows{reinterpret_cast<const std::byte*>(row.data()), 0, dtype,
                                   nullptr};
          const float value = kernels::MaxAbs(rows, 0, 1, static_cast<std::int64_t>(length));
          const double expected = Decoded(pattern, dtype);
          if (std::isfinite(expected)) {
            ASSERT_EQ(value, std::abs(expected)) << pattern;
          } else {
            ASSERT_TRUE(std::isnan(value)) << pattern;
          }
        }
      }
    }
  });
}

TEST(Convert, StoringRoundsToNearestEven) {
  const FloatEnvironment defaults;  // as in the calls; and the comparisons are of subnormal numbers
  // Everywhere where the result may change: each number of the format, the middle between it and
  // the next, and the floats just beside that middle.
  for (const DType dtype : kNarrow) {
    std::vector<float> x;
    for (std::uint32_t bits = 0; bits < 0x8000; ++bits) {
      const double value = Decoded(bits, dtype);
      if (!std::isfinite(value)) break;
      double next = Decoded(bits + 1, dtype);
      // Past the largest number the format goes on in thought: from its middle on, infinity.
      if (std::isinf(next)) next = 2.0 * value - Decoded(bits - 1, dtype);
      const auto middle = static_cast<float>((value + next) / 2.0);
      ASSERT_EQ(middle, (value + next) / 2.0);
      const float below = std::nextafter(middle, 0.0F);
      const float above = std::nextafter(middle, std::numeric_limits<float>::infinity());
      for (const float one : {static_cast<float>(value), below, middle, above}) {
        x.push_back(one);
        x.push_back(-one);
      }
    }
    for (const float one :
         {std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::min(), 1e-40F,
          1e-30F, 65536.0F, 1e30F, std::numeric_limits<float>::max(),
          std::numeric_limits<float>::infinity()}) {
      x.push_back(one);
      x.push_back(-one);
    }
    ForEachInstructionSet([&] {
      const std::vector<std::uint16_t> stored = Stored(x, dtype);
      for (std::size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(stored[i], Encoded(Rounded(x[i], dtype), dtype)) << "x = " << x[i];
      }
    });
  }
}

TEST(Convert, StoringRowsOfEveryLength) {
  Random random(13);
  ForEachInstructionSet([&] {
    for (const DType dtype : kNarrow) {
      for (std::size_t length = 0; length <= 70; ++length) {
        std::vector<float> row(length);
        for (float& value : row) value = static_cast<float>(random.Normal());
        const std::vector<std::uint16_t> stored = Stored(row, dtype);
        for (std::size_t i = 0; i < length; ++i) {
          ASSERT_EQ(stored[i], Encoded(Rounded(row[i], dtype), dtype));
        }
      }
    }
  });
}

TEST(Convert, NaNStaysNaN) {
  // Every payload whose bits might be lost by cutting or carried away by rounding.
  std::vector<float> x;
  for (std::uint32_t bit = 0; bit < 23; ++bit) {
    x.push_back(std::bit_cast<float>(0x7F800000U | (1U << bit)));
    x.push_back(std::bit_cast<float>(0xFF800000U | (1U << bit)));
  }
  x.push_back(std::bit_cast<float>(0x7FFFFFFFU));
  x.push_back(std::bit_cast<float>(0xFFFFFFFFU));
  ForEachInstructionSet([&] {
    for (const DType dtype : kNarrow) {
      for (const std::uint16_t bits : Stored(x, dtype)) {
        ASSERT_TRUE(std::isnan(Decoded(bits, dtype))) << bits;
      }
    }
  });
}

}  // namespace
}  // namespace smyrf::testing
