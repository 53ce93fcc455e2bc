#include "plan/open.h"

#include <algorithm>
#include <cstddef>
#include <limits>

#include "kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "plan/open.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/exp-inl.h"
#include "kernels/nodes-inl.h"

#ifndef SMYRF_OPEN_ONCE_
#define SMYRF_OPEN_ONCE_
namespace smyrf {
namespace {

struct OpenScratch {
  kernels::Buffer logits, risks;
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
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  OpenScratch& scratch = OfThread<OpenScratch>();
  opening.closed.clear();
  opening.closed_logits.clear();
  opening.ranges.clear();
  opening.visited = 0;
  scratch.leaves.clear();
  HWY_ALIGN float max[kTreeRows];   // largest logit so far, base 2
  HWY_ALIGN float mass[kTreeRows];  // of sinks and closed nodes, relative to it
  HWY_ALIGN float weight[kTreeRows];
  std::fill_n(max, kTreeRows, -std::numeric_limits<float>::infinity());
  std::fill_n(mass, kTreeRows, 0.0F);

  if (nodes.sinks > 0) {
    opening.ranges.push_back({0, static_cast<std::int32_t>(nodes.sinks), false});
    float* s = scratch.logits.Need(static_cast<std::size_t>(nodes.sinks * kTreeRows));
    SinkScores(nodes, lanes, s);
    for (std::int64_t c = 0; c < kTreeRows; c += step) {
      auto m = hn::LoadU(d, s + c);
      for (std::int64_t j = 1; j < nodes.sinks; ++j) {
        m = hn::Max(m, hn::LoadU(d, s + j * kTreeRows + c));
      }
      auto sum = hn::Zero(d);
      for (std::int64_t j = 0; j < nodes.sinks; ++j) {
        sum = hn::Add(sum, Exp2(d, hn::Sub(hn::LoadU(d, s + j * kTreeRows + c), m)));
      }
      hn::StoreU(m, d, max + c);
      hn::StoreU(sum, d, mass + c);
    }
  }

  std::vector<std::int32_t>& candidates = scratch.candidates;
  candidates.resize(static_cast<std::size_t>(nodes.roots));
  for (std::size_t i = 0; i < candidates.size(); ++i) candidates[i] = static_cast<std::int32_t>(i);
  const float limit = threshold * threshold;
  const float share = 1.0F / static_cast<float>(lanes.rows);
  while (!candidates.empty()) {
    const auto count = static_cast<std::int64_t>(candidates.size());
    opening.visited += count;
    float* logits = scratch.logits.Need(static_cast<std::size_t>(count * kTreeRows));
    float* risks = scratch.risks.Need(static_cast<std::size_t>(count * kTreeRows));
    NodeLogitsTile(nodes, lanes, candidates.data(), count, logits, risks);
    // risks become (weight^2 risk), weights relative to the new largest logit.
    for (std::int64_t c = 0; c < kTreeRows; c += step) {
      const auto old_max = hn::LoadU(d, max + c);
      auto m = old_max;
      for (std::int64_t j = 0; j < count; ++j) {
        m = hn::Max(m, hn::LoadU(d, logits + j * kTreeRows + c));
      }
      auto kept = hn::Mul(hn::LoadU(d, mass + c), Exp2(d, hn::Sub(old_max, m)));
      auto total = kept;
      for (std::int64_t j = 0; j < count; ++j) {
        const auto w = Exp2(d, hn::Sub(hn::LoadU(d, logits + j * kTreeRows + c), m));
        total = hn::Add(total, w);
        const auto risk = hn::LoadU(d, risks + j * kTreeRows + c);
        const float spread = nodes.value_spreads[candidates[static_cast<std::size_t>(j)]];
        hn::StoreU(hn::Mul(hn::Mul(w, w), NodeError(risk, spread, mass_weight)), d,
                   risks + j * kTreeRows + c);
      }
      hn::StoreU(m, d, max + c);
      hn::StoreU(kept, d, mass + c);
      hn::StoreU(hn::Div(hn::Set(d, share), hn::Mul(total, total)), d, weight + c);
    }
    for (std::int64_t i = lanes.rows; i < kTreeRows; ++i) weight[i] = 0.0F;

    std::vector<std::int32_t>& next = scratch.next;
    next.clear();
    const std::size_t level_leaves = scratch.leaves.size();
    for (std::int64_t j = 0; j < count; ++j) {
      auto sum = hn::Zero(d);
      for (std::int64_t c = 0; c < kTreeRows; c += step) {
        sum = hn::MulAdd(hn::LoadU(d, risks + j * kTreeRows + c), hn::LoadU(d, weight + c), sum);
      }
      const std::int32_t id = candidates[static_cast<std::size_t>(j)];
      const float score = hn::GetLane(hn::SumOfLanes(d, sum));
      const Node& node = nodes.nodes[static_cast<std::size_t>(id)];
      if (score > limit) {
        for (std::int32_t k = 0; k < node.child_count; ++k) next.push_back(node.first_child + k);
        if (node.child_count == 0) AddRange(node.begin, node.end, scratch.leaves);
      } else {
        const float* from = logits + j * kTreeRows;
        opening.closed.push_back(id);
        opening.closed_logits.insert(opening.closed_logits.end(), from, from + kTreeRows);
        for (std::int64_t c = 0; c < kTreeRows; c += step) {
          const auto w = Exp2(d, hn::Sub(hn::LoadU(d, from + c), hn::LoadU(d, max + c)));
          hn::StoreU(hn::Add(hn::LoadU(d, mass + c), w), d, mass + c);
        }
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
