#include "methods/tree/forward.h"

#include <cstdint>

namespace smyrf {

void ExecuteNodes(const kernels::NodesView& nodes, const TreeBlock& block,
                  const HeadOutput& output) {
  const kernels::Partial partial =
      kernels::AttendNodes(nodes, block.lanes, block.closed, block.closed_logits, block.ranges);
  for (std::int64_t i = 0; i < block.lanes.rows; ++i) {
    output.Finish(block.lanes.positions[i], partial.Row(i));
  }
}

}  // namespace smyrf
