#include "methods/tree/open.h"

#include <algorithm>
#include <cstddef>

#include "base/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "methods/tree/open.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "methods/tree/level-inl.h"

#ifndef SMYRF_OPEN_ONCE_
#define SMYRF_OPEN_ONCE_
namespace smyrf {
namespace {

struct OpenScratch {
  std::vector<KeyRange> leaves;
  std::int64_t bytes() const { return kernels::BytesOf(leaves); }
};

/// Appends [begin, end), joined to the last range where they touch.
void AddRange(std::int32_t begin, std::int32_t end, std::vector<KeyRange>& ranges) {
  if (!ranges.empty() && ranges.back().end == begin) {
    ranges.back().end = end;
  } else {
    ranges.push_back({begin, end});
  }
}

}  // namespace
}  // namespace smyrf
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void OpenBlockImpl(const NodesView& nodes, const QueryLanes& lanes, float threshold,
                   const Scoring& scoring, Opening& opening) {
  std::vector<KeyRange>& leaves = OfThread<OpenScratch>().leaves;
  opening.closed.clear();
  opening.closed_logits.clear();
  opening.ranges.clear();
  leaves.clear();
  if (nodes.sinks() > 0) {
    opening.ranges.push_back({0, static_cast<std::int32_t>(nodes.sinks())});
  }

  const float limit = threshold * threshold;
  Levels levels(nodes, lanes, scoring);
  while (levels.Score()) {
    const auto candidates = levels.candidates();
    const auto level_leaves = std::ssize(leaves);
    for (std::size_t j = 0; j < candidates.size(); ++j) {
      if (levels.score(j) > limit) {
        const Node& node = nodes.nodes[static_cast<std::size_t>(candidates[j])];
        levels.Open(j);
        if (node.child_count == 0) AddRange(node.begin, node.end, leaves);
      } else {
        levels.Close(j);
        opening.closed.push_back(candidates[j]);
        opening.closed_logits.insert(opening.closed_logits.end(), levels.logits(j),
                                     levels.logits(j) + kTreeRows);
      }
    }
    // Leaves lie on at most two levels, each ascending.
    std::inplace_merge(leaves.begin(), leaves.begin() + level_leaves, leaves.end(),
                       [](const KeyRange& a, const KeyRange& b) { return a.begin < b.begin; });
  }
  for (const KeyRange& leaf : leaves) AddRange(leaf.begin, leaf.end, opening.ranges);
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf {

namespace kernels {
HWY_EXPORT(OpenBlockImpl);
}  // namespace kernels

void OpenBlock(const kernels::NodesView& nodes, const kernels::QueryLanes& lanes, float threshold,
               const Scoring& scoring, Opening& opening) {
  using namespace kernels;  // where the dispatch tables are
  HWY_DYNAMIC_DISPATCH(OpenBlockImpl)(nodes, lanes, threshold, scoring, opening);
}

}  // namespace smyrf
#endif
