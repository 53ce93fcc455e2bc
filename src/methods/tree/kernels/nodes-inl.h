// Pseudo-logits of nodes, inlined into opening, calibration and execution.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "methods/tree/kernels/nodes.h"
#include "simd/exp-inl.h"
#include "simd/tile-inl.h"

#if defined(SMYRF_NODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_NODES_INL_H_
#undef SMYRF_NODES_INL_H_
#else
#define SMYRF_NODES_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr std::int64_t kNodeTile = 128;
inline constexpr float kHuge = 1e30F;  // weights of infinity would be NaN

HWY_INLINE std::int64_t TreeVectors() {
  return kTreeRows / static_cast<std::int64_t>(hn::Lanes(FloatTag()));
}

/// Square of the error that a summary with all the mass leaves in out, and, times mass_weight (a
/// square too), in the mass itself. risk = min(u, n - 1).
template <class V>
HWY_INLINE V NodeError(V risk, float value_spread, float mass_weight) {
  const FloatTag d;
  const auto part = hn::Min(hn::Set(d, 1.0F), hn::Mul(risk, hn::Set(d, 0.25F)));
  return hn::Mul(risk, hn::MulAdd(part, hn::Set(d, mass_weight), hn::Set(d, value_spread)));
}

/// Variance of a logit over a node, from the query's product with its axis and its root's energy.
template <class V>
HWY_INLINE V LogitVariance(V on_axis, V energy, V residual) {
  return hn::Min(hn::MulAdd(on_axis, on_axis, hn::Mul(energy, residual)),
                 hn::Set(FloatTag(), kHuge));
}

/// What scoring needs beside logits, (count, kTreeRows) each.
struct NodeRisks {
  float* risks;    ///< min(u, n - 1)
  float* trusted;  ///< logits, base 2, with at most kTrusted of c
};
inline constexpr float kTrusted = 2.0F;  // nats

/// logits (count, kTreeRows) in base 2 of ids, and `risks` where given.
///
/// A node of n keys whose logits have mean m and variance u weighs about n e^(m + c): c = u / 2 is
/// exact for normal logits; past u = 2 ln n, where it would overshoot what n keys can hold,
/// c = sqrt(2 u ln n) - ln n meets it with equal slope (the random energy model's two phases,
/// Derrida 1981).
inline HWY_NOINLINE void NodeLogitsTile(const NodesView& nodes, const QueryLanes& lanes,
                                        const std::int32_t* ids, std::int64_t count, float* logits,
                                        const NodeRisks* risks) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  constexpr float kLog2E = 1.44269504088896340736F;
  const float* keys[kNodeTile];
  const float* axes[kNodeTile];
  HWY_ALIGN float along[kNodeTile * kTreeRows];
  for (std::int64_t begin = 0; begin < count; begin += kNodeTile) {
    const std::int64_t tile = std::min(kNodeTile, count - begin);
    for (std::int64_t j = 0; j < tile; ++j) {
      const std::int64_t id = ids[begin + j];
      keys[j] = nodes.mean_keys + id * nodes.depth;
      axes[j] = nodes.axes + id * kCoordinates;
    }
    float* s = logits + begin * kTreeRows;
    ScoreTile<kTreeRows>(keys, tile, lanes.q, nodes.depth, TreeVectors(), s);
    ScoreTile<kTreeRows>(axes, tile, lanes.coordinates, kCoordinates, TreeVectors(), along);
    for (std::int64_t j = 0; j < tile; ++j) {
      const std::int64_t id = ids[begin + j];
      const float log_count = nodes.log_counts[id];
      const auto others =
          hn::Set(d, static_cast<float>(nodes.nodes[static_cast<std::size_t>(id)].end -
                                        nodes.nodes[static_cast<std::size_t>(id)].begin - 1));
      const float* energy = lanes.energies + nodes.root_of[id] * kTreeRows;
      const auto residual = hn::Set(d, nodes.residuals[id]);
      const auto ln = hn::Set(d, log_count);
      const auto twice = hn::Set(d, 2.0F * log_count);
      for (std::int64_t c = 0; c < kTreeRows; c += step) {
        const auto axis = hn::LoadU(d, along + j * kTreeRows + c);
        const auto variance = LogitVariance(axis, hn::LoadU(d, energy + c), residual);
        // ln n + c: ln n + u / 2, or sqrt(2 u ln n).
        const auto narrow = hn::MulAdd(variance, hn::Set(d, 0.5F), ln);
        const auto wide = hn::Sqrt(hn::Mul(variance, twice));
        const auto added = hn::IfThenElse(hn::Gt(variance, twice), wide, narrow);
        const auto logit = hn::LoadU(d, s + j * kTreeRows + c);
        hn::StoreU(hn::MulAdd(added, hn::Set(d, kLog2E), logit), d, s + j * kTreeRows + c);
        if (risks != nullptr) {
          const std::int64_t at = (begin + j) * kTreeRows + c;
          const auto trusted = hn::Min(added, hn::Add(ln, hn::Set(d, kTrusted)));
          hn::StoreU(hn::Min(variance, others), d, risks->risks + at);
          hn::StoreU(hn::MulAdd(trusted, hn::Set(d, kLog2E), logit), d, risks->trusted + at);
        }
      }
    }
  }
}

/// scores (sinks, kTreeRows) in base 2; at most kNodeTile sinks.
inline HWY_NOINLINE void SinkScores(const NodesView& nodes, const QueryLanes& lanes,
                                    float* scores) {
  const float* keys[kNodeTile];
  for (std::int64_t j = 0; j < nodes.sinks(); ++j) keys[j] = nodes.keys + j * nodes.depth;
  ScoreTile<kTreeRows>(keys, nodes.sinks(), lanes.q, nodes.depth, TreeVectors(), scores);
}

/// scores (count, kTreeRows) of keys as they lie in `rows`, base 2.
inline HWY_NOINLINE void ScoreRows(const Rows& rows, std::int64_t count, std::int64_t depth,
                                   const QueryLanes& lanes, Buffer& buffer, float* scores) {
  const float* keys[kNodeTile];
  for (std::int64_t begin = 0; begin < count; begin += kNodeTile) {
    const std::int64_t tile = std::min(kNodeTile, count - begin);
    FloatRows(rows, begin, tile, depth, buffer, keys);
    ScoreTile<kTreeRows>(keys, tile, lanes.q, depth, TreeVectors(), scores + begin * kTreeRows);
  }
}

/// Logits become weights relative to their own largest, which goes to max; sums to sum.
inline HWY_NOINLINE void Weigh(std::int64_t count, float* scores, float* max, float* sum) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t c = 0; c < kTreeRows; c += step) {
    auto m = hn::Set(d, -std::numeric_limits<float>::infinity());
    for (std::int64_t j = 0; j < count; ++j)
      m = hn::Max(m, hn::LoadU(d, scores + j * kTreeRows + c));
    auto total = hn::Zero(d);
    for (std::int64_t j = 0; j < count; ++j) {
      const auto w = Exp2(d, hn::Sub(hn::LoadU(d, scores + j * kTreeRows + c), m));
      total = hn::Add(total, w);
      hn::StoreU(w, d, scores + j * kTreeRows + c);
    }
    hn::StoreU(m, d, max + c);
    hn::StoreU(total, d, sum + c);
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_NODES_INL_H_
