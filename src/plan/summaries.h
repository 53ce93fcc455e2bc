// Summaries of a key tree's nodes, computed once from plan, k and v; planner, executors and (later)
// backward read them.
#pragma once

#include <cstdint>

#include "kernels/nodes.h"
#include "kernels/scratch.h"
#include "smyrf/plan.h"
#include "validate.h"

namespace smyrf {

class Summaries {
 public:
  /// Copies the head's keys and values in tree order, float32. `tree` must outlive it.
  /// Memory: 4 (Nk (D + Dv) + nodes (D + Dv + 66)) bytes; about Nk / 6 nodes.
  Summaries(const Problem& problem, std::int64_t batch, std::int64_t key_head, const KeyTree& tree,
            int threads);

  kernels::NodesView view() const { return view_; }

 private:
  kernels::Floats keys_, values_, mean_keys_, mean_values_, axes_, variances_, log_counts_,
      value_spreads_;
  kernels::NodesView view_;
};

}  // namespace smyrf
