// The planner of `tree`: error-controlled attention over balanced trees.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "methods/tree/basis.h"
#include "methods/tree/calibrate.h"
#include "methods/tree/kernels/nodes.h"
#include "methods/tree/open.h"
#include "methods/tree/sketch.h"
#include "methods/tree/summaries.h"
#include "run/plan_parts.h"
#include "run/problem.h"
#include "smyrf/plan.h"

namespace smyrf {

/// One (batch, key head) with its group of query heads. Dials are the plan's.
class TreePlanner {
 public:
  /// Basis, sinks, key tree and summaries. Same for any number of threads.
  TreePlanner(const Problem& problem, const PlanInfo& plan, std::int64_t batch,
              std::int64_t key_head, const Run& run);

  /// Order, blocks without their lists, and threshold of a query head of the group. A head that is
  /// not finite, sees no key, or is cheaper done as dense has no blocks.
  struct Head {
    HeadPlan plan;
    Calibration calibration;  ///< where there are blocks
  };
  Head PlanHead(std::int64_t query_head) const;

  const KeyForest& forest() const { return tree_; }
  /// Where there are blocks.
  kernels::NodesView nodes() const;
  KeyForest TakeForest() { return std::move(tree_); }

 private:
  bool IsFinite(std::int64_t i) const { return std::isfinite(sizes_[static_cast<std::size_t>(i)]); }
  /// No logit of the group's query head is larger, by the largest elements.
  double LargestLogit(std::int64_t head) const;
  void FindCommonBasis();
  std::vector<std::int32_t> ChooseSinks(const std::vector<std::int32_t>& keys,
                                        const kernels::Floats& coordinates);

  const Problem& problem_;
  const PlanInfo& plan_;
  std::int64_t batch_, key_head_;
  std::int64_t first_head_, head_count_;  ///< of the group
  Run run_;
  std::vector<std::int32_t> queries_;  ///< valid positions
  /// Largest absolute elements of the group's query heads and, behind them, of the keys; NaN where
  /// one is not finite.
  std::vector<float> sizes_;
  Basis basis_;
  KeyForest tree_;
  std::vector<std::int32_t> ranks_;  ///< as NodesView's
  std::unique_ptr<Summaries> summaries_;
  std::unique_ptr<ValueSketch> sketch_;
};

/// The lanes of one block of a query head, in memory of the calling thread until its next call.
kernels::QueryLanes BlockLanes(const Problem& problem, std::int64_t batch, std::int64_t query_head,
                               const HeadView& head, const QueryBlock& block,
                               const KeyForestView& tree);

/// One (batch, key head) and its query heads [first_head, last_head).
struct HeadGroup {
  std::int64_t batch = 0;
  std::int64_t key_head = 0;
  std::int64_t first_head = 0;
  std::int64_t last_head = 0;
  Run run;  ///< that its work may use
};
void ForEachGroup(const Problem& problem, const std::function<void(const HeadGroup&)>& body);

/// Empty trees and heads of a plan of `tree`, to be filled in.
void MakeRoomForTrees(const Problem& problem, PlanParts& plan);
/// A place in a plan's list of key ranges or nodes as its blocks hold it; throws where 32 bits are
/// too few.
std::uint32_t PlanOffset(std::size_t place);
/// Whether no plan of such a head can have such a place.
bool AlwaysFits(std::int64_t queries, std::int64_t keys);
/// What its blocks evaluate goes to `head`.
void StoreOpenings(std::span<const Opening> openings, HeadPlan& head);

/// Fills plan.forests and plan.heads.
void PlanTree(const Problem& problem, PlanParts& plan);

}  // namespace smyrf
