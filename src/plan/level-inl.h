// One level of opening nodes for a block of queries: scores, and what stays behind of those that
// are kept. What OpenBlock does for one threshold, and calibration for all of them.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "hwy/highway.h"
#include "kernels/exp-inl.h"
#include "kernels/nodes-inl.h"
#include "kernels/scratch.h"

#if defined(SMYRF_LEVEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_LEVEL_INL_H_
#undef SMYRF_LEVEL_INL_H_
#else
#define SMYRF_LEVEL_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// What the sinks and the nodes closed so far weigh.
struct BlockMass {
  HWY_ALIGN float max[kTreeRows];   ///< largest logit so far, base 2
  HWY_ALIGN float mass[kTreeRows];  ///< relative to it
};

/// Working memory of levels. After ScoreLevel, of its candidates: logits (count, kTreeRows), and
/// scores (count), squares.
struct LevelScratch {
  Buffer logits, risks, scores;
};

HWY_INLINE void StartWithSinks(const NodesView& nodes, const QueryLanes& lanes,
                               LevelScratch& scratch, BlockMass& block) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  std::fill_n(block.max, kTreeRows, -std::numeric_limits<float>::infinity());
  std::fill_n(block.mass, kTreeRows, 0.0F);
  if (nodes.sinks == 0) return;
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
    hn::StoreU(m, d, block.max + c);
    hn::StoreU(sum, d, block.mass + c);
  }
}

/// Scores of the candidates, as OpenBlock's documentation has them, squared.
HWY_INLINE void ScoreLevel(const NodesView& nodes, const QueryLanes& lanes,
                           std::span<const std::int32_t> candidates, float mass_weight,
                           LevelScratch& scratch, BlockMass& block) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  const auto count = static_cast<std::int64_t>(candidates.size());
  float* logits = scratch.logits.Need(static_cast<std::size_t>(count * kTreeRows));
  float* risks = scratch.risks.Need(static_cast<std::size_t>(count * kTreeRows));
  float* scores = scratch.scores.Need(static_cast<std::size_t>(count));
  NodeLogitsTile(nodes, lanes, candidates.data(), count, logits, risks);
  HWY_ALIGN float weight[kTreeRows];
  const float share = 1.0F / static_cast<float>(lanes.rows);
  // Risks become (weight^2 risk), weights relative to the new largest logit.
  for (std::int64_t c = 0; c < kTreeRows; c += step) {
    const auto old_max = hn::LoadU(d, block.max + c);
    auto m = old_max;
    for (std::int64_t j = 0; j < count; ++j) {
      m = hn::Max(m, hn::LoadU(d, logits + j * kTreeRows + c));
    }
    auto kept = hn::Mul(hn::LoadU(d, block.mass + c), Exp2(d, hn::Sub(old_max, m)));
    auto total = kept;
    for (std::int64_t j = 0; j < count; ++j) {
      const auto w = Exp2(d, hn::Sub(hn::LoadU(d, logits + j * kTreeRows + c), m));
      total = hn::Add(total, w);
      const auto risk = hn::LoadU(d, risks + j * kTreeRows + c);
      const float spread = nodes.value_spreads[candidates[static_cast<std::size_t>(j)]];
      hn::StoreU(hn::Mul(hn::Mul(w, w), NodeError(risk, spread, mass_weight)), d,
                 risks + j * kTreeRows + c);
    }
    hn::StoreU(m, d, block.max + c);
    hn::StoreU(kept, d, block.mass + c);
    hn::StoreU(hn::Div(hn::Set(d, share), hn::Mul(total, total)), d, weight + c);
  }
  for (std::int64_t i = lanes.rows; i < kTreeRows; ++i) weight[i] = 0.0F;
  for (std::int64_t j = 0; j < count; ++j) {
    auto sum = hn::Zero(d);
    for (std::int64_t c = 0; c < kTreeRows; c += step) {
      sum = hn::MulAdd(hn::LoadU(d, risks + j * kTreeRows + c), hn::LoadU(d, weight + c), sum);
    }
    scores[j] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

/// A node of these logits (kTreeRows) is kept as its summary.
HWY_INLINE void CloseNode(const float* logits, BlockMass& block) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t c = 0; c < kTreeRows; c += step) {
    const auto w = Exp2(d, hn::Sub(hn::LoadU(d, logits + c), hn::LoadU(d, block.max + c)));
    hn::StoreU(hn::Add(hn::LoadU(d, block.mass + c), w), d, block.mass + c);
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_LEVEL_INL_H_
