// Exact: the row-wise kernels against plain double precision, on every instruction set.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "simd/kernels.h"
#include "testing/bounds.h"
#include "testing/instruction_sets.h"
#include "testing/tensor.h"

namespace smyrf::testing {
namespace {

constexpr float kInfinityF = std::numeric_limits<float>::infinity();
constexpr float kNaNF = std::numeric_limits<float>::quiet_NaN();

kernels::Rows RowsOf(const Tensor& tensor, const std::vector<std::int32_t>& order) {
  const TensorView view = tensor.view();
  return {static_cast<const std::byte*>(view.data), view.strides[2] * SizeOf(view.dtype),
          view.dtype, order.empty() ? nullptr : order.data()};
}

TEST(ProjectRows, GivesNormsAndProducts) {
  Random random(14);
  for (int n = 0; n < 150; ++n) {
    const std::int64_t rows = random.Between(1, 150);
    const std::int64_t depth = random.Of<std::int64_t>({1, 2, 3, 4, 7, 8, 16, 33, 64, 129, 512});
    const std::int64_t count = random.Of<std::int64_t>({1, 2, 5, 6, 7, 64, 65, 130});
    Tensor x(random.Of({DType::kFloat32, DType::kFloat16, DType::kBFloat16}), {1, 1, rows, depth},
             random.Of({Layout::kContiguous, Layout::kGaps}));
    x.FillNormal(random);
    std::vector<float> directions(static_cast<std::size_t>(count * depth));
    for (float& value : directions) value = static_cast<float>(random.Normal());
    std::vector<std::int32_t> order;
    if (random.Chance(0.5)) {
      order.resize(static_cast<std::size_t>(rows));
      for (auto& row : order) row = static_cast<std::int32_t>(random.Below(rows));
    }
    kernels::ProjectTask task;
    task.rows = RowsOf(x, order);
    task.begin = random.Below(rows);
    task.end = std::min(rows, task.begin + random.Between(1, kernels::kBlockRows));
    task.depth = depth;
    task.factor = random.Of({1.0F, 0.25F, 0x1p40F});
    task.directions = directions.data();
    task.direction_count = count;
    task.product_stride = rows + 3;
    ForEachInstructionSet([&] {
      std::vector<float> norms(static_cast<std::size_t>(rows), kNaNF);
      std::vector<float> products(static_cast<std::size_t>(count * (rows + 3)), kNaNF);
      task.norms = norms.data();
      task.products = products.data();
      kernels::ProjectRows(task);
      const double u = UnitRoundoff(DType::kFloat32);
      for (std::int64_t i = 0; i < rows; ++i) {
        const bool asked = i >= task.begin && i < task.end;
        const std::int64_t row = order.empty() ? i : order[static_cast<std::size_t>(i)];
        const double norm = std::pow(task.factor * x.RowNorm(0, 0, row), 2);
        const float got = norms[static_cast<std::size_t>(i)];
        if (!asked) {
          ASSERT_TRUE(std::isnan(got));
        } else {
          ASSERT_NEAR(got, norm, Growth(static_cast<double>(depth) + 1.0) * u * norm);
        }
        for (std::int64_t r = 0; r < count; ++r) {
          double product = 0.0;
          double size = 0.0;
          for (std::int64_t c = 0; c < depth; ++c) {
            const double term =
                task.factor * x.at(0, 0, row, c) *
                static_cast<double>(directions[static_cast<std::size_t>(r * depth + c)]);
            product += term;
            size += std::abs(term);
          }
          const float projected = products[static_cast<std::size_t>(r * (rows + 3) + i)];
          if (!asked) {
            ASSERT_TRUE(std::isnan(projected));
          } else {
            ASSERT_NEAR(projected, product, Growth(static_cast<double>(depth) + 1.0) * u * size);
          }
        }
      }
    });
  }
}

TEST(MaxAbs, FindsTheLargestAndWhatIsNotFinite) {
  Random random(15);
  ForEachInstructionSet([&] {
    for (std::int64_t depth = 1; depth <= 40; ++depth) {
      Tensor x(DType::kFloat32, {1, 1, 6, depth}, Layout::kGaps);
      x.FillNormal(random);
      const std::int64_t row = random.Between(1, 4);
      const std::int64_t column = random.Below(depth);
      x.FillRow(0, 0, 0, kNaN);  // outside of the range asked for
      x.FillRow(0, 0, 5, kInfinity);
      const auto largest = [&] { return kernels::MaxAbs(RowsOf(x, {}), 1, 5, depth); };
      x.set(0, 0, row, column, -77.0);
      ASSERT_EQ(largest(), 77.0F);
      for (const double value : {kNaN, kInfinity, -kInfinity}) {
        x.set(0, 0, row, column, value);
        ASSERT_TRUE(std::isnan(largest())) << depth << " " << column;
      }
      // Only rows of the order count.
      const std::vector<std::int32_t> order{row == 1 ? 2 : 1, row == 4 ? 3 : 4};
      ASSERT_TRUE(std::isfinite(kernels::MaxAbs(RowsOf(x, order), 0, 2, depth)));
    }
  });
  EXPECT_EQ(kernels::MaxAbs({}, 0, 0, 8), 0.0F);
}

}  // namespace
}  // namespace smyrf::testing
