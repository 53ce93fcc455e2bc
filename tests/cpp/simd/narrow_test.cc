// Relative: narrow blocks against the same integers and bfloat16 numbers in double precision.
#include "simd/narrow.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "testing/instruction_sets.h"
#include "testing/random.h"

namespace smyrf::testing {
namespace {

using kernels::NarrowKeys;
using kernels::RowsOf;

std::vector<float> RandomRows(Random& random, std::int64_t rows, std::int64_t depth) {
  std::vector<float> values(static_cast<std::size_t>(rows * depth));
  for (float& value : values) value = static_cast<float>(1.5 * random.Normal());
  return values;
}

/// Rows as PackKeys leaves them.
struct Packed {
  std::vector<std::byte> numbers;
  std::vector<float> steps;
  std::vector<std::int32_t> offsets;
  std::int64_t stride;
  Precision precision;

  Packed(const std::vector<float>& values, std::int64_t depth, Precision precision_)
      : stride(kernels::NarrowBytes(precision_, depth)), precision(precision_) {
    const auto rows = static_cast<std::int64_t>(values.size()) / depth;
    numbers.resize(static_cast<std::size_t>(rows * stride));
    steps.resize(static_cast<std::size_t>(rows));
    offsets.resize(static_cast<std::size_t>(rows));
    // In two parts, of which the first ends inside a vector.
    const std::int64_t cut = rows / 2 / 2 * 2;
    kernels::PackKeys(RowsOf(values.data(), depth), 0, cut, depth, precision, keys());
    kernels::PackKeys(RowsOf(values.data(), depth), cut, rows, depth, precision, keys());
  }
  NarrowKeys keys() { return {numbers.data(), stride, steps.data(), offsets.data()}; }
  double Number(std::int64_t row, std::int64_t c) const {
    const std::byte* at = numbers.data() + row * stride;
    return precision == Precision::kInt8 ? reinterpret_cast<const std::int8_t*>(at)[c]
                                         : reinterpret_cast<const std::int16_t*>(at)[c];
  }
  /// The product of two packed rows.
  double Times(std::int64_t row, const Packed& other, std::int64_t other_row,
               std::int64_t depth) const {
    double sum = 0.0;
    for (std::int64_t c = 0; c < depth; ++c) sum += Number(row, c) * other.Number(other_row, c);
    return sum * steps[static_cast<std::size_t>(row)] *
           other.steps[static_cast<std::size_t>(other_row)];
  }
};

double BFloat16(std::uint32_t bits) { return std::bit_cast<float>(bits << 16); }

struct Case {
  std::int64_t queries, depth, value_depth;
  std::vector<KeyRange> ranges;
};

/// Weights have a relative error of at most `weight`: half a part of an exponent and half a unit of
/// bfloat16 (int8), or that unit alone (int16).
void CheckBlock(const Case& test, Precision precision, double scale) {
  const double weight_error = precision == Precision::kInt8 ? 0.0078 : 0.0041;
  Random random(static_cast<std::uint64_t>(test.depth));
  const std::int64_t keys = test.ranges.back().end + 3;
  const std::vector<float> query = RandomRows(random, test.queries, test.depth);
  const std::vector<float> key = RandomRows(random, keys, test.depth);
  const std::vector<float> value = RandomRows(random, keys, test.value_depth);
  Packed packed(key, test.depth, precision);
  const Packed queries(query, test.depth, precision);
  std::vector<std::uint32_t> pairs(static_cast<std::size_t>((keys + 1) / 2 * test.value_depth));
  kernels::PackValues(RowsOf(value.data(), test.value_depth), 0, keys, test.value_depth,
                      pairs.data());
  // Named, or GCC warns of what an empty one does not hold.
  static const std::optional<Window> kNoWindow;
  static const std::optional<Positions> kNoPositions;
  const Mask mask(test.queries, keys, false, kNoWindow, {}, kNoPositions);
  kernels::NarrowTask task;
  task.block = {.query = RowsOf(query.data(), test.depth),
                .key = RowsOf(key.data(), test.depth),
                .value = RowsOf(value.data(), test.value_depth),
                .depth = test.depth,
                .value_depth = test.value_depth,
                .query_begin = 0,
                .query_end = test.queries,
                .ranges = test.ranges,
                .partial = {},
                .scale = static_cast<float>(scale),
                .mask = &mask};
  task.precision = precision;
  task.key = packed.keys();
  task.value = pairs.data();
  const kernels::Partial partial = kernels::AttendNarrowBlock(task);
  double lse_errors = 0.0;
  for (std::int64_t i = 0; i < test.queries; ++i) {
    std::vector<double> out(static_cast<std::size_t>(test.value_depth));
    double sum = 0.0;
    double largest = 0.0;
    for (const KeyRange& range : test.ranges) {
      for (std::int64_t j = range.begin; j < range.end; ++j) {
        const double weight = std::exp(scale * queries.Times(i, packed, j, test.depth));
        sum += weight;
        for (std::int64_t c = 0; c < test.value_depth; ++c) {
          const std::uint32_t pair = pairs[static_cast<std::size_t>(j / 2 * test.value_depth + c)];
          const double v = BFloat16(j % 2 == 0 ? pair & 0xFFFFU : pair >> 16);
          out[static_cast<std::size_t>(c)] += weight * v;
          largest = std::max(largest, std::abs(v));
        }
      }
    }
    std::vector<float> row(static_cast<std::size_t>(test.value_depth));
    const double lse = kernels::FinishPartial(partial.Row(i), DType::kFloat32,
                                              reinterpret_cast<std::byte*>(row.data()));
    lse_errors += lse - std::log(sum);
    ASSERT_NEAR(lse, std::log(sum), precision == Precision::kInt8 ? weight_error : 1e-4) << i;
    for (std::int64_t c = 0; c < test.value_depth; ++c) {
      const auto at = static_cast<std::size_t>(c);
      ASSERT_NEAR(row[at], out[at] / sum, 2.0 * weight_error * largest) << i << " " << c;
    }
  }
  // Errors of single weights are small because they are as often above as below.
  EXPECT_LE(std::abs(lse_errors) / static_cast<double>(test.queries), 0.3 * weight_error);
}

TEST(Narrow, BlocksAreTheIntegersProducts) {
  const std::vector<Case> cases = {
      {64, 64, 64, {{0, 500}}},  {43, 80, 96, {{1, 130}, {131, 132}, {201, 333}}},
      {64, 7, 5, {{0, 255}}},    {5, 1, 1, {{3, 200}}},
      {63, 128, 37, {{0, 129}}}, {64, 512, 512, {{0, 77}}},
      {17, 65, 130, {{2, 260}}},
  };
  ForEachInstructionSet([&] {
    for (const Precision precision : {Precision::kInt8, Precision::kInt16}) {
      if (!kernels::HasPrecision(precision)) continue;
      for (const Case& test : cases) {
        SCOPED_TRACE(::testing::Message() << test.depth << " " << test.value_depth << " int"
                                          << (precision == Precision::kInt8 ? 8 : 16));
        CheckBlock(test, precision, 0.7 / std::sqrt(static_cast<double>(test.depth)));
        // Logits far apart: most weights are 0.
        CheckBlock(test, precision, 20.0 / static_cast<double>(test.depth));
      }
    }
  });
}

TEST(Narrow, SumsOfProductsCannotOverflow) {
  for (const Precision precision : {Precision::kInt8, Precision::kInt16}) {
    for (const std::int64_t depth : {1, 64, 127, 128, 129, 512, 2048}) {
      const double largest = kernels::LargestInteger(precision, depth);
      const double query = precision == Precision::kInt8 ? 255.0 : largest;
      EXPECT_LT(static_cast<double>(depth) * query * largest, 0x1p31);
    }
  }
}

TEST(Narrow, RotatedRowsKeepTheirProducts) {
  ForEachInstructionSet([] {
    for (const std::int64_t depth : {1, 2, 3, 31, 64, 80, 96, 128, 200}) {
      Random random(static_cast<std::uint64_t>(depth));
      const std::vector<float> rows = RandomRows(random, 37, depth);
      const Packed packed(rows, depth, Precision::kInt16);
      const kernels::RowsMeasure measure =
          kernels::MeasureRows(RowsOf(rows.data(), depth), 0, 37, depth);
      const double error = kernels::LogitError(measure, measure, depth, 1.0, Precision::kInt16);
      double squares = 0.0;
      double norms = 0.0;
      double largest = 0.0;
      for (std::int64_t i = 0; i < 37; ++i) {
        const double step = static_cast<double>(packed.steps[static_cast<std::size_t>(i)]) *
                            kernels::LargestInteger(Precision::kInt16, depth);
        largest += step * step;
        for (std::int64_t j = 0; j < 37; ++j) {
          double exact = 0.0;
          for (std::int64_t c = 0; c < depth; ++c) {
            exact += static_cast<double>(rows[static_cast<std::size_t>(i * depth + c)]) *
                     rows[static_cast<std::size_t>(j * depth + c)];
          }
          if (i == j) norms += exact;
          squares += std::pow(packed.Times(i, packed, j, depth) - exact, 2);
        }
      }
      // Of a row of one element nothing is left out.
      EXPECT_LE(std::sqrt(squares) / 37.0, 1.3 * error + 1e-6) << depth;
      if (depth > 1) {
        EXPECT_GE(std::sqrt(squares) / 37.0, 0.5 * error) << depth;
      }
      EXPECT_NEAR(measure.sum.norm / norms, 1.0, 1e-5);
      EXPECT_NEAR(measure.sum.element / largest, 1.0, 1e-5);
    }
  });
}

TEST(Narrow, FiniteValuesStayFinite) {
  ForEachInstructionSet([] {
    std::vector<float> values(42, std::numeric_limits<float>::max());
    values[3] = -std::numeric_limits<float>::max();
    values[4] = std::numeric_limits<float>::infinity();
    values[5] = std::numeric_limits<float>::quiet_NaN();
    std::vector<std::uint32_t> pairs(21);
    kernels::PackValues(RowsOf(values.data(), 21), 0, 2, 21, pairs.data());
    EXPECT_EQ(pairs[0], 0x7F7F7F7FU);
    EXPECT_EQ(pairs[3], 0x7F7FFF7FU);
    EXPECT_EQ(pairs[4] & 0xFFFFU, 0x7F80U);
    EXPECT_TRUE(std::isnan(BFloat16(pairs[5] & 0xFFFFU)));
    EXPECT_EQ(pairs[20], 0x7F7F7F7FU);
  });
}

}  // namespace
}  // namespace smyrf::testing
