#include "plan/open.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "plan/open.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "plan/level-inl.h"

#ifndef SMYRF_OPEN_ONCE_
#define SMYRF_OPEN_ONCE_
namespace smyrf {
namespace {

struct OpenScratch {
  std::vector<std::int32_t> candidates, next;
  std::vector<KeyRange> leaves;
};

/// Appends [begin, end), joined to the last range where they touch.
void AddRange(std::int32_t begin, std::int32_t end, std::vector<KeyRange>& ranges) {
  if (!ranges.empty() && ranges.back().end == begin) {
    ranges.back().end = end;
  } else {
    ranges.push_back({begin, end, false});
  }
}

}  // namespace
}  // namespace smyrf
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void OpenBlockImpl(const NodesView& nodes, const QueryLanes& lanes, float threshold,
                   float mass_weight, Opening& opening) {
  OpenScratch& scratch = OfThread<OpenScratch>();
  LevelScratch& level = OfThread<LevelScratch>();
  opening.closed.clear();
  opening.closed_logits.clear();
  opening.ranges.clear();
  opening.visited = 0;
  scratch.leaves.clear();
  BlockMass block;
  StartWithSinks(nodes, lanes, level, block);
  if (nodes.sinks > 0) {
    opening.ranges.push_back({0, static_cast<std::int32_t>(nodes.sinks), false});
  }

  std::vector<std::int32_t>& candidates = scratch.candidates;
  candidates.resize(static_cast<std::size_t>(nodes.roots));
  std::iota(candidates.begin(), candidates.end(), 0);
  const float limit = threshold * threshold;
  while (!candidates.empty()) {
    opening.visited += std::ssize(candidates);
    ScoreLevel(nodes, lanes, candidates, mass_weight, level, block);
    const float* logits = level.logits.data();
    const float* scores = level.scores.data();
    std::vector<std::int32_t>& next = scratch.next;
    next.clear();
    const std::size_t level_leaves = scratch.leaves.size();
    for (std::size_t j = 0; j < candidates.size(); ++j) {
      const std::int32_t id = candidates[j];
      const Node& node = nodes.nodes[static_cast<std::size_t>(id)];
      if (scores[j] > limit) {
        for (std::int32_t k = 0; k < node.child_count; ++k) next.push_back(node.first_child + k);
        if (node.child_count == 0) AddRange(node.begin, node.end, scratch.leaves);
      } else {
        const float* from = logits + static_cast<std::ptrdiff_t>(j) * kTreeRows;
        opening.closed.push_back(id);
        opening.closed_logits.insert(opening.closed_logits.end(), from, from + kTreeRows);
        CloseNode(from, block);
      }
    }
    // Leaves lie on at most two levels, each ascending.
    std::inplace_merge(scratch.leaves.begin(),
                       scratch.leaves.begin() + static_cast<std::ptrdiff_t>(level_leaves),
                       scratch.leaves.end(),
                       [](const KeyRange& a, const KeyRange& b) { return a.begin < b.begin; });
    candidates.swap(next);
  }
  for (const KeyRange& leaf : scratch.leaves) AddRange(leaf.begin, leaf.end, opening.ranges);
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf {

namespace kernels {
HWY_EXPORT(OpenBlockImpl);
}  // namespace kernels

void OpenBlock(const kernels::NodesView& nodes, const kernels::QueryLanes& lanes, float threshold,
               float mass_weight, Opening& opening) {
  using namespace kernels;  // where the dispatch tables are
  HWY_DYNAMIC_DISPATCH(OpenBlockImpl)(nodes, lanes, threshold, mass_weight, opening);
}

}  // namespace smyrf
#endif
