#include "plan/calibrate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/parallel.h"
#include "kernels/scratch.h"
#include "plan/random.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "plan/calibrate.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/exp-inl.h"
#include "kernels/nodes-inl.h"

#ifndef SMYRF_CALIBRATE_ONCE_
#define SMYRF_CALIBRATE_ONCE_
namespace smyrf {
namespace {

using kernels::kTreeRows;

constexpr std::int64_t kBlocks = 32;
constexpr std::int64_t kRowsABlock = 4;
constexpr std::uint64_t kRowStream = 1;                         // of random numbers
constexpr std::int64_t kGroupBlocks = kTreeRows / kRowsABlock;  // their rows fill the lanes
/// Thresholds that are tried at once, of a geometric grid. First a coarse grid on one group of
/// blocks: from kLargest times the tolerance times the values' RMS down. (The errors that n equal
/// summaries leave add up to sqrt(n) times one, so the useful thresholds lie within sqrt(number of
/// nodes) and the ratio of the output's size to the values'.) Then a fine grid around what it finds
/// on all groups, moved until the answer lies inside.
constexpr int kCoarse = 12;
constexpr double kCoarseRatio = 2.2;
constexpr std::int64_t kCoarseGroups = 1;
constexpr double kLargest = 2.0;
constexpr int kFine = 10;
constexpr double kFineRatio = 1.5;
constexpr int kFineAbove = 6;  // of the fine grid, above what the coarse one found
constexpr int kMoves = 4;
constexpr int kThresholds = std::max(kCoarse, kFine);

using Thresholds = std::vector<float>;
using Sums = std::array<double, kThresholds>;

/// Adds up over groups, in order.
struct Measured {
  Sums out_error{}, lse_error{};      ///< squares, a row
  Sums out_error_2{}, lse_error_2{};  ///< their squares
  Sums exact{}, closed{}, visited{};  ///< keys and nodes, a block
  double out = 0.0;                   ///< squares
  std::int64_t rows = 0, blocks = 0;
};

/// What all thresholds do in one block.
struct Decisions {
  std::vector<std::uint32_t> closed;  ///< (nodes): bit t where threshold t keeps the summary
  std::vector<std::uint32_t> opened;  ///< (nodes): bit t where it opens the node
};

/// Rows and thresholds of one group of blocks.
struct GroupTask {
  const CalibrationTask& task;
  std::span<const std::int64_t> sampled;  ///< blocks of the query tree
  std::int64_t first, step;               ///< the group: sampled[first], [first + step] and so on
  const Thresholds& thresholds;
  float mass_weight;
  std::int64_t levels;
};

struct CalibrateScratch {
  kernels::Buffer logits, risks, exact, masses, sums, bins, ones;
  std::vector<std::int32_t> ids, candidates, next;
  std::vector<std::uint32_t> active, next_active;
  std::array<Decisions, static_cast<std::size_t>(kGroupBlocks)> decisions;
};

CalibrateScratch& ThreadCalibrateScratch() {
  thread_local CalibrateScratch scratch;
  return scratch;
}

}  // namespace
}  // namespace smyrf
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// scores (count, kTreeRows) of keys as they lie in `rows`, base 2.
HWY_INLINE void ScoreRows(const Rows& rows, std::int64_t count, std::int64_t depth,
                          const QueryLanes& lanes, Buffer& buffer, float* scores) {
  const float* keys[kNodeTile];
  float* converted = buffer.Need(static_cast<std::size_t>(kNodeTile * depth));
  for (std::int64_t begin = 0; begin < count; begin += kNodeTile) {
    const std::int64_t tile = std::min(kNodeTile, count - begin);
    for (std::int64_t j = 0; j < tile; ++j) {
      const std::byte* row = rows.Row(begin + j);
      if (rows.dtype == DType::kFloat32) {
        keys[j] = reinterpret_cast<const float*>(row);
      } else {
        LoadRow(row, rows.dtype, depth, converted + j * depth);
        keys[j] = converted + j * depth;
      }
    }
    ScoreTile<kTreeRows>(keys, tile, lanes.q, depth, TreeVectors(), scores + begin * kTreeRows);
  }
}

/// Logits become weights relative to their own largest, which goes to max; sums to sum.
HWY_INLINE void Weigh(std::int64_t count, float* scores, float* max, float* sum) {
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

void AddSharesImpl(const Rows& keys, std::int64_t count, std::int64_t depth,
                   const QueryLanes& lanes, float* shares) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  CalibrateScratch& scratch = ThreadCalibrateScratch();
  float* scores = scratch.exact.Need(static_cast<std::size_t>(count * kTreeRows));
  HWY_ALIGN float max[kTreeRows];
  HWY_ALIGN float sum[kTreeRows];
  ScoreRows(keys, count, depth, lanes, scratch.risks, scores);
  Weigh(count, scores, max, sum);
  for (std::int64_t i = 0; i < kTreeRows; ++i) sum[i] = i < lanes.rows ? 1.0F / sum[i] : 0.0F;
  for (std::int64_t j = 0; j < count; ++j) {
    auto share = hn::Zero(d);
    for (std::int64_t c = 0; c < kTreeRows; c += step) {
      share = hn::MulAdd(hn::LoadU(d, scores + j * kTreeRows + c), hn::LoadU(d, sum + c), share);
    }
    shares[j] += hn::GetLane(hn::SumOfLanes(d, share));
  }
}

/// What OpenBlock decides for one block at every threshold.
HWY_INLINE void Decide(const NodesView& nodes, const QueryLanes& lanes,
                       const Thresholds& thresholds, float mass_weight, CalibrateScratch& scratch,
                       Decisions& decisions, Measured& measured) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  const std::size_t tried = thresholds.size();
  decisions.closed.assign(nodes.nodes.size(), 0);
  decisions.opened.assign(nodes.nodes.size(), 0);
  HWY_ALIGN float reference[kTreeRows];           // base-2 logit that weights are relative to
  HWY_ALIGN float mass[kThresholds * kTreeRows];  // of sinks and closed nodes, by threshold
  const auto add = [&](const float* weights, float* sum) HWY_ATTR {
    for (std::int64_t c = 0; c < kTreeRows; c += step) {
      hn::StoreU(hn::Add(hn::LoadU(d, sum + c), hn::LoadU(d, weights + c)), d, sum + c);
    }
  };
  std::vector<std::int32_t>& candidates = scratch.candidates;
  std::vector<std::uint32_t>& active = scratch.active;  // bit t: threshold t visits the candidate
  candidates.assign(scratch.ids.begin(), scratch.ids.begin() + nodes.roots);
  active.assign(candidates.size(), (std::uint32_t{1} << tried) - 1);
  for (std::size_t t = 0; t < tried; ++t) measured.exact[t] += static_cast<double>(nodes.sinks);
  const float share = 1.0F / static_cast<float>(lanes.rows);
  for (bool first = true; !candidates.empty(); first = false) {
    const auto count = static_cast<std::int64_t>(candidates.size());
    float* weights =
        scratch.logits.Need(static_cast<std::size_t>((nodes.sinks + count) * kTreeRows));
    float* risks = scratch.risks.Need(static_cast<std::size_t>(count * kTreeRows));
    NodeLogitsTile(nodes, lanes, candidates.data(), count, weights, risks);
    if (first) {
      float* s = weights + count * kTreeRows;
      const float* keys[kNodeTile];
      for (std::int64_t j = 0; j < nodes.sinks; ++j) keys[j] = nodes.keys + j * nodes.depth;
      ScoreTile<kTreeRows>(keys, nodes.sinks, lanes.q, nodes.depth, TreeVectors(), s);
      for (std::int64_t c = 0; c < kTreeRows; c += step) {
        auto m = hn::LoadU(d, weights + c);
        for (std::int64_t j = 1; j < nodes.sinks + count; ++j) {
          m = hn::Max(m, hn::LoadU(d, weights + j * kTreeRows + c));
        }
        auto sum = hn::Zero(d);
        for (std::int64_t j = 0; j < nodes.sinks; ++j) {
          sum = hn::Add(sum, Exp2(d, hn::Sub(hn::LoadU(d, s + j * kTreeRows + c), m)));
        }
        hn::StoreU(m, d, reference + c);
        for (std::size_t t = 0; t < tried; ++t) {
          hn::StoreU(sum, d, mass + static_cast<std::int64_t>(t) * kTreeRows + c);
        }
      }
    }
    // Logits become weights; risks become weight^2 risk s^2 / rows. A child may weigh more than all
    // roots did: up to 2^60, whose square is still finite.
    for (std::int64_t j = 0; j < count; ++j) {
      const float spread = nodes.value_spreads[candidates[static_cast<std::size_t>(j)]];
      for (std::int64_t c = 0; c < kTreeRows; c += step) {
        const std::int64_t at = j * kTreeRows + c;
        const auto logit = hn::Sub(hn::LoadU(d, weights + at), hn::LoadU(d, reference + c));
        const auto w = Exp2(d, hn::Min(logit, hn::Set(d, 60.0F)));
        const auto risk =
            hn::Mul(NodeError(hn::LoadU(d, risks + at), spread, mass_weight), hn::Set(d, share));
        hn::StoreU(w, d, weights + at);
        hn::StoreU(hn::Mul(hn::Mul(w, w), risk), d, risks + at);
      }
    }
    for (std::size_t t = 0; t < tried; ++t) {
      const float limit = thresholds[t] * thresholds[t];
      const std::uint32_t bit = std::uint32_t{1} << t;
      float* own = mass + static_cast<std::int64_t>(t) * kTreeRows;
      HWY_ALIGN float inverse[kTreeRows];
      std::copy_n(own, kTreeRows, inverse);
      std::int64_t visited = 0;
      for (std::int64_t j = 0; j < count; ++j) {
        if ((active[static_cast<std::size_t>(j)] & bit) == 0) continue;
        ++visited;
        add(weights + j * kTreeRows, inverse);
      }
      if (visited == 0) continue;
      for (std::int64_t i = 0; i < kTreeRows; ++i) {
        inverse[i] = i < lanes.rows ? 1.0F / (inverse[i] * inverse[i]) : 0.0F;
      }
      for (std::int64_t j = 0; j < count; ++j) {
        if ((active[static_cast<std::size_t>(j)] & bit) == 0) continue;
        auto sum = hn::Zero(d);
        for (std::int64_t c = 0; c < kTreeRows; c += step) {
          sum = hn::MulAdd(hn::LoadU(d, risks + j * kTreeRows + c), hn::LoadU(d, inverse + c), sum);
        }
        const auto id = static_cast<std::size_t>(candidates[static_cast<std::size_t>(j)]);
        if (hn::GetLane(hn::SumOfLanes(d, sum)) > limit) {
          decisions.opened[id] |= bit;
          if (nodes.nodes[id].child_count == 0) {
            measured.exact[t] += nodes.nodes[id].end - nodes.nodes[id].begin;
          }
        } else {
          decisions.closed[id] |= bit;
          measured.closed[t] += 1.0;
          add(weights + j * kTreeRows, own);
        }
      }
      measured.visited[t] += static_cast<double>(visited);
    }
    scratch.next.clear();
    scratch.next_active.clear();
    for (const std::int32_t id : candidates) {
      const std::uint32_t opened = decisions.opened[static_cast<std::size_t>(id)];
      const Node& node = nodes.nodes[static_cast<std::size_t>(id)];
      if (opened == 0) continue;
      for (std::int32_t k = 0; k < node.child_count; ++k) {
        scratch.next.push_back(node.first_child + k);
        scratch.next_active.push_back(opened);
      }
    }
    candidates.swap(scratch.next);
    active.swap(scratch.next_active);
  }
  ++measured.blocks;
}

/// Sums of weighted value rows over subtrees, and what summaries in their place would change, by
/// threshold. Columns: Dv value columns and one of ones, kTreeRows lanes each.
struct Subtrees {
  const NodesView& nodes;
  const float* weights;        ///< (key_count, kTreeRows): exact
  const float* masses;         ///< (nodes, kTreeRows): of the summaries
  const Decisions* decisions;  ///< of the group's blocks
  std::int64_t blocks;
  const std::int64_t* block_lanes;  ///< (blocks + 1): lanes of each block
  float* sums;                      ///< (levels, columns, kTreeRows)
  float* bins;  ///< (kThresholds, columns, kTreeRows): changes from one threshold to the next
  const float* ones;
  int tried;

  std::int64_t size() const { return (nodes.value_depth + 1) * kTreeRows; }

  /// sum = over keys [begin, end).
  HWY_INLINE void AddKeys(std::int64_t begin, std::int64_t end, float* sum) const {
    const FloatTag d;
    const auto step = static_cast<std::int64_t>(hn::Lanes(d));
    const float* rows[kNodeTile];
    for (std::int64_t first = begin; first < end; first += kNodeTile) {
      const std::int64_t count = std::min(kNodeTile, end - first);
      for (std::int64_t j = 0; j < count; ++j) {
        rows[j] = nodes.values + (first + j) * nodes.value_depth;
      }
      const float* w = weights + first * kTreeRows;
      ValueTile<kTreeRows>(rows, count, w, nodes.value_depth, TreeVectors(), ones, sum);
      float* mass = sum + nodes.value_depth * kTreeRows;
      for (std::int64_t c = 0; c < kTreeRows; c += step) {
        auto total = hn::LoadU(d, mass + c);
        for (std::int64_t j = 0; j < count; ++j) {
          total = hn::Add(total, hn::LoadU(d, w + j * kTreeRows + c));
        }
        hn::StoreU(total, d, mass + c);
      }
    }
  }

  /// The subtree's sum goes to level's part of `sums`; its nodes' errors to `bins`.
  void Visit(std::int64_t id, std::int64_t level) const {
    const FloatTag d;
    const auto step = static_cast<std::int64_t>(hn::Lanes(d));
    const Node& node = nodes.nodes[static_cast<std::size_t>(id)];
    float* sum = sums + level * size();
    std::fill_n(sum, size(), 0.0F);
    std::uint32_t opened = 0;
    std::uint32_t closed = 0;
    for (std::int64_t b = 0; b < blocks; ++b) {
      opened |= decisions[b].opened[static_cast<std::size_t>(id)];
      closed |= decisions[b].closed[static_cast<std::size_t>(id)];
    }
    if (node.child_count == 0 || opened == 0) {
      AddKeys(node.begin, node.end, sum);
    } else {
      const float* child = sums + (level + 1) * size();
      for (std::int32_t k = node.first_child; k < node.first_child + node.child_count; ++k) {
        Visit(k, level + 1);
        for (std::int64_t i = 0; i < size(); i += step) {
          hn::StoreU(hn::Add(hn::LoadU(d, sum + i), hn::LoadU(d, child + i)), d, sum + i);
        }
      }
    }
    if (closed == 0) return;
    // Where a block begins or ends to keep this summary, its error enters or leaves.
    for (int t = 0; t < tried; ++t) {
      HWY_ALIGN float sign[kTreeRows] = {};
      bool any = false;
      for (std::int64_t b = 0; b < blocks; ++b) {
        const std::uint32_t bits = decisions[b].closed[static_cast<std::size_t>(id)];
        const int now = static_cast<int>(bits >> t & 1U);
        const int before = t > 0 ? static_cast<int>(bits >> (t - 1) & 1U) : 0;
        if (now == before) continue;
        any = true;
        std::fill(sign + block_lanes[b], sign + block_lanes[b + 1],
                  static_cast<float>(now - before));
      }
      if (!any) continue;
      float* bin = bins + t * size();
      const float* mean = nodes.mean_values + id * nodes.value_depth;
      for (std::int64_t c = 0; c < kTreeRows; c += step) {
        const auto mass = hn::LoadU(d, masses + id * kTreeRows + c);
        const auto lane_sign = hn::LoadU(d, sign + c);
        for (std::int64_t r = 0; r <= nodes.value_depth; ++r) {
          const std::int64_t at = r * kTreeRows + c;
          const auto value = hn::Set(d, r < nodes.value_depth ? mean[r] : 1.0F);
          const auto error = hn::NegMulAdd(mass, value, hn::LoadU(d, sum + at));
          hn::StoreU(hn::MulAdd(lane_sign, error, hn::LoadU(d, bin + at)), d, bin + at);
        }
      }
    }
  }
};

/// One group of blocks: `lanes` (kRowsABlock of each of `blocks`), decided for all thresholds.
HWY_INLINE void MeasureErrors(const NodesView& nodes, const QueryLanes& lanes, std::int64_t blocks,
                              const std::int64_t* block_lanes, int tried, std::int64_t levels,
                              CalibrateScratch& scratch, Measured& measured) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  const auto count = static_cast<std::int64_t>(nodes.nodes.size());
  const std::int64_t columns = nodes.value_depth + 1;
  const std::int64_t size = columns * kTreeRows;
  HWY_ALIGN float max[kTreeRows];
  HWY_ALIGN float mass[kTreeRows];
  float* exact = scratch.exact.Need(static_cast<std::size_t>(nodes.key_count * kTreeRows));
  const Rows keys{reinterpret_cast<const std::byte*>(nodes.keys),
                  nodes.depth * static_cast<std::int64_t>(sizeof(float)), DType::kFloat32, nullptr};
  ScoreRows(keys, nodes.key_count, nodes.depth, lanes, scratch.logits, exact);
  Weigh(nodes.key_count, exact, max, mass);
  float* masses = scratch.masses.Need(static_cast<std::size_t>(count * kTreeRows));
  NodeLogitsTile(nodes, lanes, scratch.ids.data(), count, masses, nullptr);
  for (std::int64_t i = 0; i < count * kTreeRows; i += step) {
    const auto m = hn::LoadU(d, max + i % kTreeRows);
    // A summary of 2^20 times the largest exact weight is as wrong as can be.
    const auto logit = hn::Min(hn::Sub(hn::LoadU(d, masses + i), m), hn::Set(d, 20.0F));
    hn::StoreU(Exp2(d, logit), d, masses + i);
  }

  float* bins = scratch.bins.Need(static_cast<std::size_t>(tried * size));
  float* sums = scratch.sums.Need(static_cast<std::size_t>((levels + 1) * size));
  float* ones = scratch.ones.Need(kTreeRows);
  std::fill_n(bins, tried * size, 0.0F);
  std::fill_n(ones, kTreeRows, 1.0F);
  const Subtrees subtrees{nodes,  exact,       masses,      scratch.decisions.data(),
                          blocks, block_lanes, sums + size, bins,
                          ones,   tried};
  float* total = sums;
  std::fill_n(total, size, 0.0F);
  subtrees.AddKeys(0, nodes.sinks, total);
  for (std::int64_t root = 0; root < nodes.roots; ++root) {
    subtrees.Visit(root, 0);
    for (std::int64_t i = 0; i < size; ++i) total[i] += sums[size + i];
  }

  const float* total_mass = total + nodes.value_depth * kTreeRows;
  for (std::int64_t i = 0; i < lanes.rows; ++i) {
    for (std::int64_t c = 0; c < nodes.value_depth; ++c) {
      const double out = total[c * kTreeRows + i] / total_mass[i];
      measured.out += out * out;
    }
  }
  measured.rows += lanes.rows;
  // The errors present at threshold t: all that entered and have not left.
  for (int t = 0; t < tried; ++t) {
    float* bin = bins + t * size;
    if (t > 0) {
      for (std::int64_t i = 0; i < size; ++i) bin[i] += bin[i - size];
    }
    const float* lost_mass = bin + nodes.value_depth * kTreeRows;
    for (std::int64_t i = 0; i < lanes.rows; ++i) {
      const double whole = total_mass[i];
      const double left = whole - static_cast<double>(lost_mass[i]);
      const double of_sum = 1.0 / left - 1.0 / whole;
      const double of_lost = 1.0 / left;
      const double lse_error = std::log(std::max(left / whole, 1e-30));
      measured.lse_error[static_cast<std::size_t>(t)] += lse_error * lse_error;
      measured.lse_error_2[static_cast<std::size_t>(t)] += std::pow(lse_error, 4);
      double squares = 0.0;
      for (std::int64_t c = 0; c < nodes.value_depth; ++c) {
        const double error = of_sum * static_cast<double>(total[c * kTreeRows + i]) -
                             of_lost * static_cast<double>(bin[c * kTreeRows + i]);
        squares += error * error;
      }
      measured.out_error[static_cast<std::size_t>(t)] += squares;
      measured.out_error_2[static_cast<std::size_t>(t)] += squares * squares;
    }
  }
}

void MeasureGroup(const NodesView& nodes, const GroupTask& group, Measured& measured) {
  CalibrateScratch& scratch = ThreadCalibrateScratch();
  const CalibrationTask& task = group.task;
  scratch.ids.resize(nodes.nodes.size());
  for (std::size_t i = 0; i < scratch.ids.size(); ++i)
    scratch.ids[i] = static_cast<std::int32_t>(i);
  std::vector<std::int32_t> sampled;
  std::array<std::int64_t, static_cast<std::size_t>(kGroupBlocks) + 1> block_lanes{};
  std::int64_t blocks = 0;
  for (std::int64_t i = group.first; i < std::ssize(group.sampled); i += group.step, ++blocks) {
    const auto block = static_cast<std::size_t>(group.sampled[static_cast<std::size_t>(i)]);
    const std::int64_t begin = task.bounds[block];
    const std::int64_t count = task.bounds[block + 1] - begin;
    const QueryLanes lanes =
        LoadLanes(task.queries, begin, begin + count, nodes.depth, task.scale, task.basis);
    Decide(nodes, lanes, group.thresholds, group.mass_weight, scratch,
           scratch.decisions[static_cast<std::size_t>(blocks)], measured);
    // kRowsABlock different rows: one from each equal part of the block.
    const std::int64_t wanted = std::min(count, kRowsABlock);
    for (std::int64_t r = 0; r < wanted; ++r) {
      const std::int64_t low = count * r / wanted;
      const std::int64_t high = count * (r + 1) / wanted;
      const std::uint64_t bits =
          RandomBits(task.seed, kRowStream, static_cast<std::uint64_t>(i * kRowsABlock + r));
      const auto within = static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(high - low));
      sampled.push_back(static_cast<std::int32_t>(task.queries.Position(begin + low + within)));
    }
    block_lanes[static_cast<std::size_t>(blocks) + 1] = std::ssize(sampled);
  }
  Rows rows = task.queries;
  rows.order = sampled.data();
  const QueryLanes lanes = LoadLanes(rows, 0, static_cast<std::int64_t>(sampled.size()),
                                     nodes.depth, task.scale, task.basis);
  MeasureErrors(nodes, lanes, blocks, block_lanes.data(), static_cast<int>(group.thresholds.size()),
                group.levels, scratch, measured);
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf {

namespace kernels {
HWY_EXPORT(AddSharesImpl);
HWY_EXPORT(MeasureGroup);
}  // namespace kernels

namespace {

/// Estimates are upper bounds: a mean square and so many of its standard errors, which heavy tails
/// widen, times a factor. With 128 sampled rows and neither, one head in ten errs by a quarter more
/// than asked for. lse has the heavier tails: a key that one query sees and others don't.
constexpr double kOutErrors = 4.0;
constexpr double kLseErrors = 8.0;
constexpr double kSafety = 1.05;

/// Time over dense attention's of one block, with its planning, from counts a block: multiply-adds
/// of rows that are exact, nodes that are visited and summaries that are kept, each with its
/// exponential, at the rate that blocks of 16 run at compared with dense blocks of 64.
double Work(const kernels::NodesView& nodes, double exact, double visited, double closed) {
  constexpr double kExp = 16.0;
  constexpr double kSlower = 1.5;
  const auto d = static_cast<double>(nodes.depth);
  const auto dv = static_cast<double>(nodes.value_depth);
  const double pair = d + dv + kExp;
  const double node = d + static_cast<double>(kernels::kCoordinates) + 2.0 * kExp;
  return kSlower * (exact * pair + visited * node + closed * (dv + kExp)) /
         (static_cast<double>(nodes.key_count) * pair);
}

std::int64_t Levels(const kernels::NodesView& nodes) {
  std::int64_t levels = 1;
  for (std::size_t id = 0; nodes.nodes[id].child_count > 0; ++levels) {
    id = static_cast<std::size_t>(nodes.nodes[id].first_child);
  }
  // Leaves lie on two levels at most.
  return levels + 1;
}

/// Mean square of the values and of their deviation from their mean, from at most 1024 rows.
struct ValueSize {
  double square = 0.0, variance = 0.0;

  explicit ValueSize(const kernels::NodesView& nodes) {
    const std::int64_t step = (nodes.key_count + 1023) / 1024;
    double rows = 0.0;
    const auto dv = static_cast<std::size_t>(nodes.value_depth);
    std::vector<double> sum(dv);
    std::vector<double> squares(dv);
    for (std::int64_t i = 0; i < nodes.key_count; i += step, rows += 1.0) {
      const float* row = nodes.values + i * nodes.value_depth;
      for (std::size_t c = 0; c < dv; ++c) {
        const double x = static_cast<double>(row[c]) - static_cast<double>(nodes.values[c]);
        sum[c] += x;
        squares[c] += x * x;
      }
    }
    for (std::size_t c = 0; c < dv; ++c) {
      const double mean = sum[c] / rows;
      const double spread = std::max(0.0, squares[c] / rows - mean * mean);
      const double centre = mean + static_cast<double>(nodes.values[c]);
      variance += spread;
      square += spread + centre * centre;
    }
  }
};

/// Sums over groups: all of them, or the first few alone.
Measured Measure(const kernels::NodesView& nodes, const CalibrationTask& task,
                 std::span<const std::int64_t> sampled, const Thresholds& thresholds,
                 float mass_weight, bool first_only) {
  const std::int64_t groups = (std::ssize(sampled) + kGroupBlocks - 1) / kGroupBlocks;
  const std::int64_t wanted = first_only ? std::min(kCoarseGroups, groups) : groups;
  std::vector<Measured> parts(static_cast<std::size_t>(wanted));
  const std::int64_t levels = Levels(nodes);
  ParallelFor(wanted, task.threads, [&](std::int64_t g) {
    using namespace kernels;
    HWY_DYNAMIC_DISPATCH(MeasureGroup)
    (nodes, {task, sampled, g, groups, thresholds, mass_weight, levels},
     parts[static_cast<std::size_t>(g)]);
  });
  Measured sum;
  for (const Measured& part : parts) {
    for (std::size_t t = 0; t < thresholds.size(); ++t) {
      sum.out_error[t] += part.out_error[t];
      sum.lse_error[t] += part.lse_error[t];
      sum.out_error_2[t] += part.out_error_2[t];
      sum.lse_error_2[t] += part.lse_error_2[t];
      sum.exact[t] += part.exact[t];
      sum.closed[t] += part.closed[t];
      sum.visited[t] += part.visited[t];
    }
    sum.out += part.out;
    sum.rows += part.rows;
    sum.blocks += part.blocks;
  }
  return sum;
}

/// `count` thresholds from `largest` down.
Thresholds Grid(double largest, double ratio, int count) {
  Thresholds thresholds;
  for (int t = 0; t < count; ++t) {
    thresholds.push_back(static_cast<float>(largest * std::pow(ratio, -t)));
  }
  return thresholds;
}

/// Between two calibrations, geometrically: part 0 is the first, 1 the second.
Calibration Between(const Calibration& a, const Calibration& b, double part) {
  const auto blend = [part](double x, double y) {
    return x > 0.0 && y > 0.0 ? x * std::pow(y / x, part) : x + (y - x) * part;
  };
  return {static_cast<float>(blend(a.threshold, b.threshold)),
          a.mass_weight,
          blend(a.error, b.error),
          blend(a.lse_error, b.lse_error),
          blend(a.density, b.density),
          blend(a.work, b.work)};
}

/// What was found on a grid, and which of its thresholds (descending) is the largest that meets the
/// tolerance together with all smaller ones: size() where none does.
struct Found {
  std::vector<Calibration> grid;
  std::size_t chosen = 0;

  Found(const kernels::NodesView& nodes, const CalibrationTask& task, const Measured& sum,
        const Thresholds& thresholds, double variance) {
    const auto rows = static_cast<double>(sum.rows);
    const auto blocks = static_cast<double>(sum.blocks);
    const double size = std::max(sum.out / rows, 1e-4 * variance);
    for (std::size_t t = 0; t < thresholds.size(); ++t) {
      grid.push_back(
          {thresholds[t], 0.0F,
           size > 0.0
               ? Bound(sum.out_error[t], sum.out_error_2[t], rows, kOutErrors) / std::sqrt(size)
               : 0.0,
           Bound(sum.lse_error[t], sum.lse_error_2[t], rows, kLseErrors),
           (sum.exact[t] + sum.closed[t]) / blocks / static_cast<double>(nodes.key_count),
           Work(nodes, sum.exact[t] / blocks, sum.visited[t] / blocks, sum.closed[t] / blocks)});
    }
    chosen = grid.size();
    while (chosen > 0 && Excess(grid[chosen - 1], task.tolerance) <= 1.0) --chosen;
    if (!task.max_density) return;
    // Where the tolerance asks for more pairs than allowed, the smallest threshold that does not.
    while (chosen > 0 && (chosen == grid.size() || grid[chosen].density > *task.max_density) &&
           grid[chosen - 1].density > *task.max_density) {
      --chosen;
    }
  }

  /// Of a root mean square, from sums of squares and of their squares.
  static double Bound(double sum, double squares, double rows, double errors) {
    const double mean = sum / rows;
    const double variance = std::max(0.0, squares / rows - mean * mean);
    return std::sqrt(mean + errors * std::sqrt(variance / (kBlocks * kRowsABlock)));
  }
  static double Excess(const Calibration& at, double tolerance) {
    return kSafety * std::max(at.error, at.lse_error) / tolerance;
  }
};

}  // namespace

void AddShares(const kernels::Rows& keys, std::int64_t count, std::int64_t depth,
               const kernels::QueryLanes& lanes, float* shares) {
  using namespace kernels;
  HWY_DYNAMIC_DISPATCH(AddSharesImpl)(keys, count, depth, lanes, shares);
}

std::optional<Calibration> Calibrate(const kernels::NodesView& nodes, const CalibrationTask& task) {
  if (nodes.nodes.empty()) return std::nullopt;
  const std::int64_t blocks = std::ssize(task.bounds) - 1;
  std::vector<std::int64_t> sampled;
  for (std::int64_t i = 0; i < std::min(blocks, kBlocks); ++i) {
    sampled.push_back((2 * i + 1) * blocks / (2 * std::min(blocks, kBlocks)));
  }
  const ValueSize size(nodes);
  float mass_weight = 0.0F;
  double out_square = 0.0;
  const auto measure = [&](const Thresholds& thresholds, bool first_only) {
    const Measured sum = Measure(nodes, task, sampled, thresholds, mass_weight, first_only);
    out_square = sum.out / static_cast<double>(sum.rows);
    return Found(nodes, task, sum, thresholds, size.variance);
  };
  const Thresholds coarse =
      Grid(kLargest * task.tolerance * std::sqrt(size.square), kCoarseRatio, kCoarse);
  // One group that meets the tolerance at the largest thresholds has missed the rare large errors.
  const std::size_t start = std::max<std::size_t>(measure(coarse, true).chosen, kCoarse / 3);
  // An error of the mass by a part of itself counts as much as one of out by that part of its size.
  mass_weight = static_cast<float>(out_square);
  double largest = static_cast<double>(coarse[std::min(start, coarse.size() - 1)]) *
                   std::pow(kFineRatio, kFineAbove);
  const double highest = static_cast<double>(coarse.front());
  const double lowest = static_cast<double>(coarse.back());
  for (int move = 0;; ++move) {
    const Found fine = measure(Grid(largest, kFineRatio, kFine), false);
    const bool too_low = fine.chosen == 0 && largest < highest;
    const bool too_high = fine.chosen == fine.grid.size() && largest > lowest;
    if ((too_low || too_high) && move < kMoves) {
      largest *= std::pow(kFineRatio, too_low ? kFine - 1 : 1 - kFine);
      continue;
    }
    if (fine.chosen == fine.grid.size()) return std::nullopt;
    const auto with_weight = [mass_weight](Calibration found) {
      found.mass_weight = mass_weight;
      return found;
    };
    const Calibration& low = fine.grid[fine.chosen];
    if (fine.chosen == 0) return with_weight(low);
    const Calibration& high = fine.grid[fine.chosen - 1];
    const double below = std::max(Found::Excess(low, task.tolerance), 1e-6);
    const double above = Found::Excess(high, task.tolerance);
    if (!(above > 1.0 && below <= 1.0) || !std::isfinite(above)) return with_weight(low);
    return with_weight(Between(low, high, -std::log(below) / std::log(above / below)));
  }
}

}  // namespace smyrf
#endif
