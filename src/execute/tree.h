// The CPU executor of `tree` plans: carries out a block and decides nothing.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/nodes.h"
#include "smyrf/attention.h"
#include "validate.h"

namespace smyrf {

/// Where a head's results go.
struct HeadOutput {
  const Outputs& outputs;
  std::int64_t batch = 0;
  std::int64_t head = 0;

  void Store(std::int64_t position, const float* row, float lse) const;
  /// 0 and lse -inf, for padded queries and queries that see no key; or NaN.
  void Fill(std::int64_t position, bool with_nan) const;
};

/// One block of queries at `positions`.
void ExecuteNodes(const kernels::NodesView& nodes, const kernels::QueryLanes& lanes,
                  std::span<const std::int32_t> closed, const float* closed_logits,
                  std::span<const KeyRange> ranges, std::span<const std::int32_t> positions,
                  const HeadOutput& output);

/// Dense attention of one (batch, query head) over valid rows.
void ExecuteDenseHead(const Problem& problem, const Plan& plan, std::int64_t batch,
                      std::int64_t head, int threads, const Outputs& outputs);

}  // namespace smyrf
