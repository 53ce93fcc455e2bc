// Opening nodes for a block of queries, level by level: candidates, their scores, and what stays
// behind of those that are kept. What OpenBlock does for one threshold, calibration does for all.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "base/workspace.h"
#include "hwy/highway.h"
#include "methods/tree/kernels/nodes-inl.h"
#include "methods/tree/open.h"
#include "simd/exp-inl.h"
#include "simd/few-inl.h"

#if defined(SMYRF_LEVEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_LEVEL_INL_H_
#undef SMYRF_LEVEL_INL_H_
#else
#define SMYRF_LEVEL_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// A key whose logit a query knows before the nodes above it are opened.
struct KnownKey {
  std::int32_t rank;       ///< in tree order
  std::int32_t lane;       ///< the query's
  std::int32_t candidate;  ///< index among the level's, of the node above it
  float logit;             ///< base 2
};

/// Where attention is local, one key far from all others can hold most of a row's mass, of which no
/// mean and no variance of a node tells. So queries know the keys up to so many positions away.
constexpr std::int64_t kNear = 4;

/// ranks = those of the keys next to a query's position; their number.
HWY_INLINE std::int64_t NearKeys(const NodesView& nodes, std::int64_t position,
                                 std::int32_t (&ranks)[2 * kNear + 1]) {
  const std::int64_t own = position + nodes.own_offset;
  const std::int64_t end = std::min(own + kNear + 1, std::ssize(nodes.ranks));
  std::int64_t count = 0;
  for (std::int64_t at = std::max<std::int64_t>(0, own - kNear); at < end; ++at) {
    const std::int32_t rank = nodes.ranks[static_cast<std::size_t>(at)];
    if (rank >= nodes.sinks()) ranks[count++] = rank;  // else exact anyway, or padded
  }
  return count;
}

struct LevelScratch {
  Buffer logits, risks, trusted, scores;
  std::vector<std::int32_t> candidates, next, first_next;
  std::vector<KnownKey> known;
  std::vector<float> summary_logits;
  std::int64_t bytes() const {
    return BytesOf(logits, risks, trusted, scores, candidates, next, first_next, known,
                   summary_logits);
  }
};

/// Opens nodes for a block of queries, a level at a time: Score() until it finds no candidates, and
/// after each, Open or Close every candidate in their order.
class Levels {
 public:
  /// In memory of the calling thread: one at a time.
  HWY_INLINE Levels(const NodesView& nodes, const QueryLanes& lanes, const Scoring& scoring)
      : nodes_(nodes),
        lanes_(lanes),
        mass_weight_(scoring.mass_weight),
        scratch_(OfThread<LevelScratch>()) {
    float* sinks = scratch_.logits.Need(static_cast<std::size_t>(nodes.sinks() * kTreeRows));
    SinkScores(nodes, lanes, sinks);
    Weigh(nodes.sinks(), sinks, max_, mass_);
    scratch_.known.clear();
    if (scoring.near_keys) FindKnownKeys();
    scratch_.first_next.clear();
    scratch_.next.resize(static_cast<std::size_t>(nodes.roots()));
    std::iota(scratch_.next.begin(), scratch_.next.end(), 0);
  }

  std::span<const std::int32_t> candidates() const { return scratch_.candidates; }
  /// (kTreeRows): of candidate j, base 2.
  const float* logits(std::size_t j) const {
    return scratch_.logits.data() + static_cast<std::ptrdiff_t>(j) * kTreeRows;
  }
  /// Of candidate j, squared, as OpenBlock's documentation has it.
  float score(std::size_t j) const { return scratch_.scores.data()[j]; }

  /// The children of those that were opened become the candidates; false if there are none.
  bool Score();

  /// Candidate j is replaced by its children, or, a leaf, by its keys.
  HWY_INLINE void Open(std::size_t j) {
    const Node& node = nodes_.nodes[static_cast<std::size_t>(scratch_.candidates[j])];
    if (node.child_count == 0) return Keep(trusted(j));
    scratch_.first_next[j] = static_cast<std::int32_t>(scratch_.next.size());
    for (std::int32_t k = 0; k < node.child_count; ++k) {
      scratch_.next.push_back(node.first_child + k);
    }
  }

  /// Candidate j is kept as its summary.
  HWY_INLINE void Close(std::size_t j) { Keep(logits(j)); }

 private:
  static constexpr float kNegligible = 5.0F;    // below the largest logit known, base 2
  static constexpr float kMostPromise = 20.0F;  // of a summary, above the largest logit, base 2

  const float* trusted(std::size_t j) const {
    return scratch_.trusted.data() + static_cast<std::ptrdiff_t>(j) * kTreeRows;
  }
  /// Of logits, base 2, relative to max_.
  template <class V>
  static HWY_INLINE V Weight(V logit, V max) {
    const FloatTag d;
    return Exp2(d, hn::Min(hn::Sub(logit, max), hn::Set(d, kMostPromise)));
  }
  HWY_INLINE void Keep(const float* logits) {
    const FloatTag d;
    const auto step = static_cast<std::int64_t>(hn::Lanes(d));
    for (std::int64_t c = 0; c < kTreeRows; c += step) {
      const auto w = Weight(hn::LoadU(d, logits + c), hn::LoadU(d, max_ + c));
      hn::StoreU(hn::Add(hn::LoadU(d, mass_ + c), w), d, mass_ + c);
    }
  }
  void FindKnownKeys();
  void FollowKnownKeys();
  void ShowKnownKeys(float* logits, const NodeRisks& risks);
  void HideKnownKeys(float* logits);

  const NodesView& nodes_;
  const QueryLanes& lanes_;
  const float mass_weight_;
  LevelScratch& scratch_;
  // The largest logit that was trusted, base 2, and relative to it the mass of the sinks, the nodes
  // closed and the leaves opened so far.
  HWY_ALIGN float max_[kTreeRows];
  HWY_ALIGN float mass_[kTreeRows];
};

inline HWY_NOINLINE void Levels::FindKnownKeys() {
  const auto root_of = [&](std::int32_t rank) {
    // Roots have as many keys each, but for one leaf.
    std::int64_t root =
        (rank - nodes_.sinks()) * nodes_.roots() / (nodes_.key_count - nodes_.sinks());
    while (rank >= nodes_.nodes[static_cast<std::size_t>(root)].end) ++root;
    while (rank < nodes_.nodes[static_cast<std::size_t>(root)].begin) --root;
    return static_cast<std::int32_t>(root);
  };
  for (std::int32_t i = 0; i < lanes_.rows; ++i) {
    std::int32_t ranks[2 * kNear + 1];
    const float* keys[2 * kNear + 1];
    float logits[2 * kNear + 1];
    const std::int64_t count = NearKeys(nodes_, lanes_.positions[i], ranks);
    for (std::int64_t j = 0; j < count; ++j) keys[j] = nodes_.keys + ranks[j] * nodes_.depth;
    FewScores(lanes_.queries[i], keys, count, nodes_.depth, logits);
    float least = max_[i];
    for (std::int64_t j = 0; j < count; ++j) {
      logits[j] = std::min(logits[j] * lanes_.logit_scale, kHuge);
      least = std::max(least, logits[j]);
    }
    least -= kNegligible;
    for (std::int64_t j = 0; j < count; ++j) {
      if (!(logits[j] > least)) continue;
      scratch_.known.push_back({ranks[j], i, root_of(ranks[j]), logits[j]});
    }
  }
}

/// To the children of the nodes above them; those under closed nodes and in leaves are dropped, and
/// those that other logits have made negligible.
inline HWY_NOINLINE void Levels::FollowKnownKeys() {
  std::size_t kept = 0;
  for (KnownKey key : scratch_.known) {
    std::int32_t at = scratch_.first_next[static_cast<std::size_t>(key.candidate)];
    if (at < 0 || !(key.logit > max_[key.lane] - kNegligible)) continue;
    const auto end = [&](std::int32_t j) {
      return nodes_
          .nodes[static_cast<std::size_t>(scratch_.candidates[static_cast<std::size_t>(j)])]
          .end;
    };
    while (key.rank >= end(at)) ++at;
    key.candidate = at;
    scratch_.known[kept++] = key;
  }
  scratch_.known.resize(kept);
}

/// A node weighs no less than a key under it: where its summary says so, the error is as large as
/// one key among so many can make it.
inline HWY_NOINLINE void Levels::ShowKnownKeys(float* logits, const NodeRisks& risks) {
  scratch_.summary_logits.clear();
  for (const KnownKey& key : scratch_.known) {
    const std::int64_t at = key.candidate * kTreeRows + key.lane;
    scratch_.summary_logits.push_back(logits[at]);
    risks.trusted[at] = std::max(risks.trusted[at], key.logit);
    if (!(key.logit > logits[at])) continue;
    const Node& node = nodes_.nodes[static_cast<std::size_t>(
        scratch_.candidates[static_cast<std::size_t>(key.candidate)])];
    logits[at] = key.logit;
    risks.risks[at] = static_cast<float>(node.end - node.begin - 1);
  }
}

/// As summaries are carried out. From the last: keys may share a node.
inline HWY_NOINLINE void Levels::HideKnownKeys(float* logits) {
  for (std::size_t i = scratch_.known.size(); i-- > 0;) {
    const KnownKey& key = scratch_.known[i];
    logits[key.candidate * kTreeRows + key.lane] = scratch_.summary_logits[i];
  }
}

inline HWY_NOINLINE bool Levels::Score() {
  scratch_.candidates.swap(scratch_.next);
  if (scratch_.candidates.empty()) return false;
  if (!scratch_.first_next.empty()) FollowKnownKeys();
  scratch_.first_next.assign(scratch_.candidates.size(), -1);
  scratch_.next.clear();
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  const auto count = static_cast<std::int64_t>(scratch_.candidates.size());
  float* logits = scratch_.logits.Need(static_cast<std::size_t>(count * kTreeRows));
  float* risks = scratch_.risks.Need(static_cast<std::size_t>(count * kTreeRows));
  float* scores = scratch_.scores.Need(static_cast<std::size_t>(count));
  float* trusted = scratch_.trusted.Need(static_cast<std::size_t>(count * kTreeRows));
  const NodeRisks node_risks{risks, trusted};
  NodeLogitsTile(nodes_, lanes_, scratch_.candidates.data(), count, logits, &node_risks);
  ShowKnownKeys(logits, node_risks);
  HWY_ALIGN float weight[kTreeRows];
  const float share = 1.0F / static_cast<float>(lanes_.rows);
  // Risks become (weight^2 risk), weights relative to the largest logit that is trusted. Summaries
  // of wide nodes may promise mass that is not there, and what is kept beside them stays: only what
  // is trusted counts as the total.
  for (std::int64_t c = 0; c < kTreeRows; c += step) {
    const auto old_max = hn::LoadU(d, max_ + c);
    auto m = old_max;
    for (std::int64_t j = 0; j < count; ++j) {
      m = hn::Max(m, hn::LoadU(d, trusted + j * kTreeRows + c));
    }
    const auto kept = hn::Mul(hn::LoadU(d, mass_ + c), Exp2(d, hn::Sub(old_max, m)));
    auto total = kept;
    for (std::int64_t j = 0; j < count; ++j) {
      const auto w = Weight(hn::LoadU(d, logits + j * kTreeRows + c), m);
      total = hn::Add(total, Exp2(d, hn::Sub(hn::LoadU(d, trusted + j * kTreeRows + c), m)));
      const auto risk = hn::LoadU(d, risks + j * kTreeRows + c);
      const float spread = nodes_.value_spreads[scratch_.candidates[static_cast<std::size_t>(j)]];
      hn::StoreU(hn::Mul(hn::Mul(w, w), NodeError(risk, spread, mass_weight_)), d,
                 risks + j * kTreeRows + c);
    }
    hn::StoreU(m, d, max_ + c);
    hn::StoreU(kept, d, mass_ + c);
    hn::StoreU(hn::Div(hn::Set(d, share), hn::Mul(total, total)), d, weight + c);
  }
  for (std::int64_t i = lanes_.rows; i < kTreeRows; ++i) weight[i] = 0.0F;
  for (std::int64_t j = 0; j < count; ++j) {
    auto sum = hn::Zero(d);
    for (std::int64_t c = 0; c < kTreeRows; c += step) {
      sum = hn::MulAdd(hn::LoadU(d, risks + j * kTreeRows + c), hn::LoadU(d, weight + c), sum);
    }
    scores[j] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
  HideKnownKeys(logits);
  return true;
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_LEVEL_INL_H_
