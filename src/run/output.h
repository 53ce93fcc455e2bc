// Where executors write: the rows of one (batch, query head).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/parallel.h"
#include "run/problem.h"
#include "simd/kernels.h"
#include "smyrf/attention.h"
#include "smyrf/plan.h"

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
    StoreLse(position, lse);
  }
  /// Divides a row that no other part is to be merged with.
  void Finish(std::int64_t position, const kernels::Partial& row) const {
    StoreLse(position, kernels::FinishPartial(row, outputs.out.dtype, Row(position)));
  }

 private:
  void StoreLse(std::int64_t position, float lse) const {
    if (!outputs.lse) return;
    const MutableTensorView& out = outputs.out;
    const std::int64_t index = (batch * out.shape[1] + head) * out.shape[2] + position;
    static_cast<float*>(outputs.lse->data)[index] = lse;
  }
};

/// Whether there are queries that no block of `head` writes (null: implicit blocks of all valid
/// queries).
inline bool AnyUncovered(const Problem& problem, const HeadView* head) {
  return !problem.valid_queries.empty() || (head != nullptr && head->blocks.empty());
}

/// store(position, row, lse) for those of them at positions [begin, end): 0 and lse -inf for padded
/// ones, and for all where there is no block; NaN for the valid ones of a head that is not finite.
template <class StoreRow>
void FillUncovered(const Problem& problem, const HeadView* head, std::int64_t batch,
                   std::int64_t begin, std::int64_t end, const StoreRow& store) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  const bool whole = head != nullptr && head->blocks.empty();
  const bool all_valid = problem.valid_queries.empty();
  const std::vector<float> zeros(static_cast<std::size_t>(problem.value_depth), 0.0F);
  const std::vector<float> nans(static_cast<std::size_t>(problem.value_depth), kNaN);
  std::span<const std::int32_t> valid;  // those not yet passed
  if (!all_valid) {
    valid = ValidOf(problem.valid_queries, batch);
    valid = valid.subspan(static_cast<std::size_t>(
        std::lower_bound(valid.begin(), valid.end(), begin) - valid.begin()));
  }
  for (std::int64_t i = begin; i < end; ++i) {
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

inline void FillUncovered(const Problem& problem, const HeadView* head, const HeadOutput& output,
                          const Run& run) {
  if (!AnyUncovered(problem, head)) return;
  ParallelRows(1, problem.queries, run, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    FillUncovered(problem, head, output.batch, begin, end,
                  [&](std::int64_t i, const float* row, float lse) { output.Store(i, row, lse); });
  });
}

}  // namespace smyrf
