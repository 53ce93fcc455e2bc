#include "run/merge.h"

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/parallel.h"
#include "methods/tree/kernels/nodes.h"
#include "simd/kernels.h"

namespace smyrf {

void ExecuteMerge(const MutableTensorView& out, const MutableTensorView& lse,
                  const TensorView& other_out, const TensorView& other_lse, int num_threads) {
  const std::int64_t rows = out.shape[2];
  const std::int64_t depth = out.shape[3];
  const auto merge = [&](std::int64_t head, std::int64_t begin, std::int64_t end) {
    const std::int64_t b = head / out.shape[1];
    const std::int64_t h = head % out.shape[1];
    const TensorView own{out.data, out.dtype, out.rank, out.shape, out.strides};
    const kernels::Rows own_rows = kernels::RowsOf(own, b, h, {});
    const kernels::Rows other_rows = kernels::RowsOf(other_out, b, h, {});
    // One more than needed: without columns they would have no memory to point to.
    std::vector<float> row(static_cast<std::size_t>(depth) + 1);
    std::vector<float> other(static_cast<std::size_t>(depth) + 1);
    for (std::int64_t i = begin; i < end; ++i) {
      float& own_lse = static_cast<float*>(lse.data)[head * rows + i];
      if (depth > 0) {
        kernels::GatherRows(own_rows, i, 1, depth, row.data());
        kernels::GatherRows(other_rows, i, 1, depth, other.data());
      }
      kernels::MergeRow(row.data(), &own_lse, other.data(),
                        static_cast<const float*>(other_lse.data)[head * rows + i], depth);
      if (depth == 0) continue;
      auto* target =
          static_cast<std::byte*>(out.data) +
          SizeOf(out.dtype) * (b * out.strides[0] + h * out.strides[1] + i * out.strides[2]);
      kernels::StoreRow(row.data(), depth, out.dtype, target);
    }
  };
  ParallelRows(out.shape[0] * out.shape[1], rows, num_threads, merge);
}

}  // namespace smyrf
