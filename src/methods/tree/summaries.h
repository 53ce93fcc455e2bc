// Summaries of a key tree's nodes, computed once from plan, k and v; planner, executors and
// backward read them.
#pragma once

#include <cstdint>
#include <vector>

#include "base/run.h"
#include "base/workspace.h"
#include "methods/tree/kernels/nodes.h"
#include "run/problem.h"
#include "smyrf/plan.h"

namespace smyrf {

/// Nodes of a parallel task: the roots, which come first, cost most.
inline constexpr std::int64_t kTaskNodes = 32;

class Summaries {
 public:
  /// Copies the head's keys and values in tree order, float32. `tree` must outlive it; `profiles`,
  /// where given, becomes what the tree's are to be.
  /// Memory: 4 (Nk (D + Dv) + nodes (D + Dv + 36)) bytes; about Nk / 6 nodes.
  Summaries(const Problem& problem, std::int64_t batch, std::int64_t key_head,
            const KeyForestView& tree, const Run& run, std::vector<float>* profiles = nullptr);

  kernels::NodesView view() const { return view_; }
  /// Whether means and spreads are: false where a value under a node is not, or a sum overflows.
  bool finite() const;

 private:
  void FindRoots(const KeyForestView& tree);
  void FindProfiles(const float* variances, std::vector<float>& profiles) const;

  kernels::Floats keys_, values_, mean_keys_, mean_values_, axes_, residuals_, log_counts_,
      value_spreads_;
  std::vector<std::int32_t> root_of_;  ///< (nodes): which of roots_
  std::vector<std::int32_t> roots_;    ///< of all segments
  kernels::NodesView view_;
};

}  // namespace smyrf
