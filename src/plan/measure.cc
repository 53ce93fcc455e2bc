#include "plan/measure.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>

#include "kernels/parallel.h"
#include "kernels/scratch.h"
#include "plan/random.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "plan/measure.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/exp-inl.h"
#include "kernels/nodes-inl.h"

#ifndef SMYRF_MEASURE_ONCE_
#define SMYRF_MEASURE_ONCE_
namespace smyrf {
namespace {

using kernels::kTreeRows;

constexpr std::uint64_t kRowStream = 1;                         // of random numbers
constexpr std::int64_t kGroupBlocks = kTreeRows / kRowsABlock;  // their rows fill the lanes

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

struct MeasureScratch {
  kernels::Buffer logits, risks, exact, masses, sums, bins, ones;
  std::vector<std::int32_t> ids, candidates, next;
  std::vector<std::uint32_t> active, next_active;
  std::array<Decisions, static_cast<std::size_t>(kGroupBlocks)> decisions;
};

}  // namespace
}  // namespace smyrf
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// What OpenBlock decides for one block at every threshold.
HWY_INLINE void Decide(const NodesView& nodes, const QueryLanes& lanes,
                       const Thresholds& thresholds, float mass_weight, MeasureScratch& scratch,
                       Decisions& decisions, Measured& measured) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  const std::size_t tried = thresholds.size();
  decisions.closed.assign(nodes.nodes.size(), 0);
  decisions.opened.assign(nodes.nodes.size(), 0);
  HWY_ALIGN float reference[kTreeRows];               // base-2 logit that weights are relative to
  HWY_ALIGN float mass[kMostThresholds * kTreeRows];  // of sinks and closed nodes, by threshold
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
      SinkScores(nodes, lanes, s);
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
  float* bins;  ///< (thresholds, columns, kTreeRows): changes from one threshold to the next
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
                              MeasureScratch& scratch, Measured& measured) {
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
  MeasureScratch& scratch = OfThread<MeasureScratch>();
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
      const std::int64_t within = RandomBetween(low, high, task.seed, kRowStream,
                                                static_cast<std::uint64_t>(i * kRowsABlock + r));
      sampled.push_back(static_cast<std::int32_t>(task.queries.Position(begin + within)));
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
HWY_EXPORT(MeasureGroup);
}  // namespace kernels

namespace {

std::int64_t Levels(const kernels::NodesView& nodes) {
  std::int64_t levels = 1;
  for (std::size_t id = 0; nodes.nodes[id].child_count > 0; ++levels) {
    id = static_cast<std::size_t>(nodes.nodes[id].first_child);
  }
  // Leaves lie on two levels at most.
  return levels + 1;
}

}  // namespace

Measured Measure(const kernels::NodesView& nodes, const CalibrationTask& task,
                 const Thresholds& thresholds, float mass_weight, bool first_group_only) {
  const std::int64_t blocks = std::ssize(task.bounds) - 1;
  const std::int64_t samples = std::min(blocks, kSampledBlocks);
  std::vector<std::int64_t> sampled;  // evenly spread over the query tree
  for (std::int64_t i = 0; i < samples; ++i) {
    sampled.push_back((2 * i + 1) * blocks / (2 * samples));
  }
  const std::int64_t groups = (samples + kGroupBlocks - 1) / kGroupBlocks;
  const std::int64_t wanted = first_group_only ? std::min<std::int64_t>(1, groups) : groups;
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

}  // namespace smyrf
#endif
