// Where executors write: the rows of one (batch, query head).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "smyrf/attention.h"

namespace smyrf {

struct HeadOutput {
  const Outputs& outputs;
  std::int64_t batch = 0;
  std::int64_t head = 0;

  std::byte* Row(std::int64_t position) const {
    const MutableTensorView& out = outputs.out;
    return static_cast<std::byte*>(out.data) +
           SizeOf(out.dtype) *
               (batch * out.strides[0] + head * out.strides[1] + position * out.strides[2]);
  }
  void Store(std::int64_t position, const float* row, float lse) const {
    const MutableTensorView& out = outputs.out;
    kernels::StoreRow(row, out.shape[3], out.dtype, Row(position));
    if (!outputs.lse) return;
    const std::int64_t index = (batch * out.shape[1] + head) * out.shape[2] + position;
    static_cast<float*>(outputs.lse->data)[index] = lse;
  }
};

/// store(position, row, lse) for the queries that no block of `head` writes (null: implicit blocks
/// of all valid queries): 0 and lse -inf for padded ones, and for all where there is no block; NaN
/// for the valid ones of a head that is not finite.
template <class StoreRow>
void FillUncovered(const Plan& plan, const HeadPlan* head, std::int64_t batch,
                   std::int64_t value_depth, const StoreRow& store) {
  const bool whole = head != nullptr && head->blocks.empty();
  const bool all_valid = plan.valid_queries.empty();
  if (!whole && all_valid) return;
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> zeros(static_cast<std::size_t>(value_depth), 0.0F);
  const std::vector<float> nans(static_cast<std::size_t>(value_depth), kNaN);
  std::span<const std::int32_t> valid;  // those not yet passed
  if (!all_valid) valid = plan.valid_queries[static_cast<std::size_t>(batch)];
  for (std::int64_t i = 0; i < plan.queries; ++i) {
    bool is_valid = all_valid;
    if (!valid.empty() && valid.front() == i) {
      is_valid = true;
      valid = valid.subspan(1);
    }
    if (is_valid && !whole) continue;
    if (is_valid && head->non_finite) {
      store(i, nans.data(), kNaN);
    } else {
      store(i, zeros.data(), -std::numeric_limits<float>::infinity());
    }
  }
}

inline void FillUncovered(const Plan& plan, const HeadPlan* head, const HeadOutput& output) {
  FillUncovered(plan, head, output.batch, output.outputs.out.shape[3],
                [&](std::int64_t i, const float* row, float lse) { output.Store(i, row, lse); });
}

}  // namespace smyrf
