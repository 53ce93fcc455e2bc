// Exact: parts of a row merged and finished, against double precision.
#include "simd/partial.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

#include "testing/bounds.h"
#include "testing/instruction_sets.h"
#include "testing/tensor.h"

namespace smyrf::testing {
namespace {

using kernels::Partial;

constexpr float kInfinityF = std::numeric_limits<float>::infinity();
constexpr float kNaNF = std::numeric_limits<float>::quiet_NaN();

/// One row with memory of its own.
struct Part {
  std::vector<float> out;
  float max = -kInfinityF;
  float sum = 0.0F;

  Partial row() {
    const auto depth = static_cast<std::int64_t>(out.size());
    return {out.data(), &max, &sum, depth, depth};
  }
};

Part Merged(Part a, Part b) {
  kernels::MergePartial(a.row(), b.row());
  return a;
}

struct Row {
  std::vector<float> out;
  float lse = 0.0F;
};

Row Finished(Part part) {
  Row row{std::vector<float>(part.out.size()), 0.0F};
  row.lse = kernels::FinishPartial(part.row(), DType::kFloat32,
                                   reinterpret_cast<std::byte*>(row.out.data()));
  return row;
}

Part RandomPart(Random& random, std::size_t length) {
  Part part{std::vector<float>(length), static_cast<float>(20.0 * random.Normal()),
            static_cast<float>(1.0 + std::abs(random.Normal()))};
  for (float& value : part.out) value = static_cast<float>(random.Normal());
  return part;
}

TEST(Partial, MergesAsOneSumOfWeights) {
  Random random(16);
  ForEachInstructionSet([&] {
    for (std::size_t length = 1; length <= 40; ++length) {
      Part a = RandomPart(random, length);
      Part b = RandomPart(random, length);
      b.max = a.max + static_cast<float>(5.0 * random.Normal());
      const Row row = Finished(Merged(a, b));
      const double largest = std::max(a.max, b.max);
      const double weight_a = std::exp2(a.max - largest);
      const double weight_b = std::exp2(b.max - largest);
      const double sum = weight_a * a.sum + weight_b * b.sum;
      const double lse = std::numbers::ln2 * largest + std::log(sum);
      // One difference of two logits, exp2, product and sum round, then the quotient.
      const double u = UnitRoundoff(DType::kFloat32);
      const double exponent = std::abs(static_cast<double>(a.max) - b.max);
      ASSERT_NEAR(row.lse, lse, u * (4.0 * std::abs(largest) + exponent + 8.0));
      for (std::size_t c = 0; c < length; ++c) {
        const double size = (weight_a * std::abs(a.out[c]) + weight_b * std::abs(b.out[c])) / sum;
        const double exact = (weight_a * a.out[c] + weight_b * b.out[c]) / sum;
        ASSERT_NEAR(row.out[c], exact, (12.0 + 2.0 * exponent) * u * size);
      }
    }
  });
}

TEST(Partial, FinishesInEveryDtype) {
  Random random(17);
  ForEachInstructionSet([&] {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (std::int64_t depth = 1; depth <= 40; ++depth) {
        Part part = RandomPart(random, static_cast<std::size_t>(depth));
        Tensor target(dtype, {1, 1, 1, depth});
        const Part before = part;
        const float lse = kernels::FinishPartial(
            part.row(), dtype, static_cast<std::byte*>(target.mutable_view().data));
        ASSERT_NEAR(lse, std::numbers::ln2 * before.max + std::log(before.sum),
                    2e-7 * (std::abs(before.max) + 1.0));
        for (std::int64_t c = 0; c < depth; ++c) {
          const double exact = before.out[static_cast<std::size_t>(c)] / before.sum;
          const double rounding = UnitRoundoff(dtype) + 3.0 * UnitRoundoff(DType::kFloat32);
          ASSERT_NEAR(target.at(0, 0, 0, c), exact, rounding * std::abs(exact) + 1e-7);
        }
      }
    }
  });
}

TEST(Partial, APartWithoutMassChangesNothing) {
  Part empty{{1.0F, 2.0F, 3.0F}};
  kernels::InitPartial(empty.row());
  Part all_minus_infinity{{0.0F, 0.0F, 0.0F}};
  kernels::ClosePartial(all_minus_infinity.row(), true);
  const Part seen{{1.5F, -2.25F, 1e-3F}, -1000.25F, 1.75F};
  for (const Part& other : {empty, all_minus_infinity}) {
    for (const Part& merged : {Merged(other, seen), Merged(seen, other)}) {
      EXPECT_EQ(merged.out, seen.out);
      EXPECT_EQ(merged.max, seen.max);
      EXPECT_EQ(merged.sum, seen.sum);
    }
  }
  const Row nothing = Finished(Merged(empty, empty));
  EXPECT_EQ(nothing.out, std::vector<float>(3, 0.0F));
  EXPECT_EQ(nothing.lse, -kInfinityF);
}

TEST(Partial, MasksSayWhatAnEmptySumMeans) {
  // Keys that are allowed, but with logits of -inf: 0 over 0, whatever parts they come in.
  Part allowed{{0.0F, 0.0F}};
  kernels::ClosePartial(allowed.row(), true);
  // Keys that are not allowed may hold NaN, which a weight of 0 does not stop.
  Part masked{{kNaNF, kNaNF}};
  kernels::ClosePartial(masked.row(), false);
  EXPECT_EQ(Finished(masked).out, std::vector<float>(2, 0.0F));
  for (const Part& part : {allowed, Merged(allowed, masked), Merged(masked, allowed)}) {
    const Row row = Finished(part);
    EXPECT_TRUE(std::isnan(row.out[0]));
    EXPECT_TRUE(std::isnan(row.out[1]));
    EXPECT_EQ(row.lse, -kInfinityF);
  }
}

TEST(Partial, APartThatIsNaNIsNeverLost) {
  // As in one softmax over all keys: a key whose logit is NaN makes the row NaN, and so does a NaN
  // value, however small its weight. The largest logit of a row with NaN may be any number.
  const Part empty{{0.0F, 0.0F}};
  const Part seen{{1.0F, 2.0F}, 200.0F, 1.0F};
  const Part nan_value{{kNaNF, 1.0F}, -200.0F, 1.0F};
  for (const float max : {-kInfinityF, -10.0F, 300.0F, kInfinityF, kNaNF}) {
    const Part nan_logit{{kNaNF, kNaNF}, max, kNaNF};
    for (const Part& other : {empty, seen}) {
      for (const Part& merged : {Merged(nan_logit, other), Merged(other, nan_logit)}) {
        const Row row = Finished(merged);
        EXPECT_TRUE(std::isnan(row.out[0]));
        EXPECT_TRUE(std::isnan(row.out[1]));
        EXPECT_TRUE(std::isnan(row.lse));
      }
    }
  }
  for (const Part& other : {empty, seen}) {
    for (const Part& merged : {Merged(nan_value, other), Merged(other, nan_value)}) {
      EXPECT_TRUE(std::isnan(merged.out[0]));
      EXPECT_FALSE(std::isnan(merged.out[1]));
      EXPECT_EQ(merged.max, std::max(nan_value.max, other.max));
    }
  }
}

}  // namespace
}  // namespace smyrf::testing
