// The CPU executor of gradients of `tree`: carries out blocks and decides nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "methods/tree/forward.h"
#include "methods/tree/kernels/backward_nodes.h"
#include "methods/tree/kernels/nodes.h"
#include "run/backward.h"
#include "run/plan_parts.h"
#include "run/problem.h"
#include "simd/backward.h"
#include "smyrf/plan.h"

namespace smyrf {

/// Gradients of one (batch, key head) and its query heads, head after head. Memory: 4 (Nk (D + Dv)
/// + nodes (D + Dv + 2)) bytes for each of GradientParts, or, with one query head, once and once a
/// thread; and 4 Nk (D + Dv) as many times more where some of several heads are done as dense.
class TreeBackward {
 public:
  TreeBackward(const Problem& problem, const BackwardCall& call, std::int64_t batch,
               std::int64_t key_head, const Run& run);
  TreeBackward(const TreeBackward&) = delete;
  TreeBackward& operator=(const TreeBackward&) = delete;
  TreeBackward(TreeBackward&&) = delete;
  TreeBackward& operator=(TreeBackward&&) = delete;
  ~TreeBackward();

  /// One query head, in which `block_of(i)` is block i of the plan. `nodes` and `tree`, where there
  /// are blocks, must last until Finish.
  void AddHead(std::int64_t head, const HeadView& plan, const kernels::NodesView& nodes,
               const KeyForestView& tree, const std::function<TreeBlock(std::int64_t)>& block_of);

  /// Writes the gradients of the key head.
  void Finish();

 private:
  struct Part;

  void AddDense(std::int64_t head);
  void AddBlock(std::int64_t head, const TreeBlock& block, Part& part) const;
  void AddUp(std::int64_t i);  ///< part i to part 0
  void AddUpAll();
  void Distribute(const Part& sums) const;

  const Problem& problem_;
  const BackwardCall& call_;
  std::int64_t batch_, key_head_;
  Run run_;
  std::int64_t part_count_;
  bool only_head_;  ///< whose parts are added up as they come in
  bool non_finite_ = false;
  kernels::NodesView nodes_;
  bool has_blocks_ = false;  ///< whether any head had; then there is a tree
  KeyForestView tree_;
  std::vector<std::unique_ptr<Part>> parts_;
  std::vector<KeyGradients> by_position_;  ///< of heads done as dense
  InOrder in_order_;
};

}  // namespace smyrf
