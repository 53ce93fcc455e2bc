// The CPU executor of `tree` plans: carries out a block and decides nothing.
#pragma once

#include <cstdint>
#include <span>

#include "execute/output.h"
#include "kernels/nodes.h"
#include "smyrf/attention.h"
#include "validate.h"

namespace smyrf {

/// One block of queries at `positions`.
void ExecuteNodes(const kernels::NodesView& nodes, const kernels::QueryLanes& lanes,
                  std::span<const std::int32_t> closed, const float* closed_logits,
                  std::span<const KeyRange> ranges, std::span<const std::int32_t> positions,
                  const HeadOutput& output);

/// Dense attention of one (batch, query head) over valid rows.
void ExecuteDenseHead(const Problem& problem, const Plan& plan, std::int64_t batch,
                      std::int64_t head, int threads, const Outputs& outputs);

}  // namespace smyrf
