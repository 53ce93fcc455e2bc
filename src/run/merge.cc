#include "run/merge.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

#include "base/parallel.h"
#include "simd/kernels.h"

namespace smyrf {
namespace {

/// Rows that are widened at once.
constexpr std::int64_t kTileRows = 16;

/// Of rows that are divided already, so that their sums are 1. Their lse become relative to the
/// larger one, since large numbers would round what they differ by. Returns the lse of both.
float MergeDivided(float* out, float lse, float* other, float other_lse, std::int64_t depth,
                   DType dtype, std::byte* target) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr auto kLog2E = std::numbers::log2e_v<float>;
  const float largest = std::max(lse, other_lse);
  const float base = largest == -kInfinity ? 0.0F : largest;
  float max = (lse - base) * kLog2E;
  float other_max = (other_lse - base) * kLog2E;
  float sum = lse == -kInfinity ? 0.0F : 1.0F;
  float other_sum = other_lse == -kInfinity ? 0.0F : 1.0F;
  const kernels::Partial merged{out, &max, &sum, depth, depth};
  kernels::MergePartial(merged, {other, &other_max, &other_sum, depth, depth});
  return base + kernels::FinishPartial(merged, dtype, target);
}

}  // namespace

void ExecuteMerge(const MutableTensorView& out, const MutableTensorView& lse,
                  const TensorView& other_out, const TensorView& other_lse, const Run& run) {
  const std::int64_t rows = out.shape[2];
  const std::int64_t depth = out.shape[3];
  const std::int64_t step = SizeOf(out.dtype) * out.strides[2];  // bytes from a row of out on
  const auto merge = [&](std::int64_t head, std::int64_t begin, std::int64_t end) {
    const std::int64_t b = head / out.shape[1];
    const std::int64_t h = head % out.shape[1];
    const TensorView own{out.data, out.dtype, out.rank, out.shape, out.strides};
    const kernels::Rows own_rows = kernels::RowsOf(own, b, h, {});
    const kernels::Rows other_rows = kernels::RowsOf(other_out, b, h, {});
    auto* const own_lse = static_cast<float*>(lse.data) + head * rows;
    const auto* const others_lse = static_cast<const float*>(other_lse.data) + head * rows;
    // One more than needed: without columns they would have no memory to point to.
    std::vector<float> own_tile(static_cast<std::size_t>(kTileRows * depth) + 1);
    std::vector<float> other_tile(own_tile.size());
    for (std::int64_t first = begin; first < end; first += kTileRows) {
      const std::int64_t count = std::min(kTileRows, end - first);
      std::byte* target = nullptr;
      if (depth > 0) {
        kernels::GatherRows(own_rows, first, count, depth, own_tile.data());
        kernels::GatherRows(other_rows, first, count, depth, other_tile.data());
        target = static_cast<std::byte*>(out.data) + first * step +
                 SizeOf(out.dtype) * (b * out.strides[0] + h * out.strides[1]);
      }
      for (std::int64_t i = 0; i < count; ++i) {
        own_lse[first + i] = MergeDivided(
            own_tile.data() + i * depth, own_lse[first + i], other_tile.data() + i * depth,
            others_lse[first + i], depth, out.dtype, depth > 0 ? target + i * step : nullptr);
      }
    }
  };
  ParallelRows(out.shape[0] * out.shape[1], rows, run, merge);
}

}  // namespace smyrf
