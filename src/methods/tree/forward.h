// The CPU executor of `tree` plans: carries out a block and decides nothing.
#pragma once

#include <cstdint>
#include <span>

#include "methods/tree/kernels/nodes.h"
#include "run/output.h"
#include "smyrf/attention.h"

namespace smyrf {

/// What one block of queries evaluates; lanes and lists in memory of the thread.
struct TreeBlock {
  kernels::QueryLanes lanes;
  std::span<const std::int32_t> closed;  ///< nodes that their summaries stand for
  const float* closed_logits = nullptr;  ///< as kernels::NodeLogits gives them
  std::span<const KeyRange> ranges;      ///< exact keys

  /// Keys and summaries.
  std::int64_t size() const {
    std::int64_t count = std::ssize(closed);
    for (const KeyRange& range : ranges) count += range.end - range.begin;
    return count;
  }
};

void ExecuteNodes(const kernels::NodesView& nodes, const TreeBlock& block,
                  const HeadOutput& output);

}  // namespace smyrf
