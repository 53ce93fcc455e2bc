#include "methods/tree/measure.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>

#include "base/parallel.h"
#include "base/random.h"
#include "base/workspace.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "methods/tree/measure.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "methods/tree/level-inl.h"

#ifndef SMYRF_MEASURE_ONCE_
#define SMYRF_MEASURE_ONCE_
namespace smyrf {
namespace {

using kernels::BytesOf;
using kernels::kTreeRows;

constexpr std::uint64_t kRowStream = 1;  // of random numbers

/// What thresholds [0, tried), descending, do to each node in one block: closed by
/// [enter, leave), opened from `leave` on, out of sight before `enter`.
struct Decisions {
  std::vector<std::uint8_t> enter, leave;
};
static_assert(kMostThresholds < 256);

/// What is measured of one group of blocks.
struct GroupTask {
  const kernels::NodesView& nodes;
  const kernels::NodesView& sketch;
  const CalibrationTask& task;
  const SampledGroup& group;
  std::span<const float> thresholds;
  Scoring scoring;
  std::int64_t levels;
  Run run;  ///< within the group
};

struct MeasureScratch {
  kernels::Buffer keys, exact, logits, masses, sums, bins, error;
  std::vector<std::int32_t> closed;
  std::vector<std::uint8_t> enters, next_enters;
  std::array<Decisions, static_cast<std::size_t>(kGroupBlocks)> decisions;

  std::int64_t bytes() const {
    std::int64_t sum =
        BytesOf(keys, exact, logits, masses, sums, bins, error, closed, enters, next_enters);
    for (const Decisions& of_block : decisions) sum += BytesOf(of_block.enter, of_block.leave);
    return sum;
  }
};

}  // namespace
}  // namespace smyrf
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// weights (key_count, kTreeRows) of all keys, relative to the largest logit (base 2), which goes
/// to max.
HWY_NOINLINE void WeighKeys(const NodesView& nodes, const QueryLanes& lanes, const Run& run,
                            float* weights, float* max) {
  constexpr std::int64_t kTask = 8 * kNodeTile;
  ParallelFor((nodes.key_count + kTask - 1) / kTask, run, [&](std::int64_t task) {
    const std::int64_t begin = task * kTask;
    ScoreRows(RowsOf(nodes.keys + begin * nodes.depth, nodes.depth),
              std::min(kTask, nodes.key_count - begin), nodes.depth, lanes,
              OfThread<MeasureScratch>().keys, weights + begin * kTreeRows);
  });
  HWY_ALIGN float sum[kTreeRows];
  Weigh(nodes.key_count, weights, max, sum);
}

HWY_INLINE QueryLanes SampledLanes(const GroupTask& group) {
  Rows rows = group.task.queries;
  rows.order = group.group.queries.data();
  return LoadLanes(rows, 0, std::ssize(group.group.queries), group.nodes.depth, group.task.scale,
                   group.task.basis, group.task.profiles);
}

/// What OpenBlock decides for one block at every threshold, were the shares those that the smallest
/// threshold finds.
HWY_NOINLINE void Decide(const GroupTask& group, const QueryLanes& lanes, MeasureScratch& scratch,
                         Decisions& decisions, Measured& measured) {
  const NodesView& nodes = group.nodes;
  const auto tried = static_cast<std::uint8_t>(group.thresholds.size());
  std::array<float, kMostThresholds> limits{};
  for (std::size_t t = 0; t < tried; ++t) limits[t] = group.thresholds[t] * group.thresholds[t];
  decisions.enter.assign(nodes.nodes.size(), tried);
  decisions.leave.assign(nodes.nodes.size(), tried);
  // Changes from one threshold to the next.
  std::array<double, kMostThresholds + 1> exact{};
  std::array<double, kMostThresholds + 1> closed{};
  std::array<double, kMostThresholds + 1> visited{};
  exact[0] = static_cast<double>(nodes.sinks());
  std::vector<std::uint8_t>& enters = scratch.enters;
  enters.assign(static_cast<std::size_t>(nodes.roots()), 0);
  Levels levels(nodes, lanes, group.scoring);
  while (levels.Score()) {
    const auto candidates = levels.candidates();
    scratch.next_enters.clear();
    for (std::size_t j = 0; j < candidates.size(); ++j) {
      const auto id = static_cast<std::size_t>(candidates[j]);
      const Node& node = nodes.nodes[id];
      const std::uint8_t enter = enters[j];
      std::uint8_t leave = enter;
      while (leave < tried && !(levels.score(j) > limits[leave])) ++leave;
      decisions.enter[id] = enter;
      decisions.leave[id] = leave;
      visited[enter] += 1.0;
      closed[enter] += 1.0;
      closed[leave] -= 1.0;
      if (leave == tried) {
        levels.Close(j);
        continue;
      }
      levels.Open(j);
      if (node.child_count == 0) exact[leave] += static_cast<double>(node.end - node.begin);
      scratch.next_enters.insert(scratch.next_enters.end(),
                                 static_cast<std::size_t>(node.child_count), leave);
    }
    enters.swap(scratch.next_enters);
  }
  for (std::size_t t = 0; t < tried; ++t) {
    exact[t + 1] += exact[t];
    closed[t + 1] += closed[t];
    visited[t + 1] += visited[t];
    measured.exact[t] += exact[t];
    measured.closed[t] += closed[t];
    measured.visited[t] += visited[t];
  }
  ++measured.blocks;
}

/// Sums of weighted value rows over subtrees, and what summaries in their place would change, by
/// threshold. The last value column is of ones: mass.
struct Subtrees {
  const GroupTask& group;
  const float* weights;        ///< (key_count, kTreeRows): exact
  const Decisions* decisions;  ///< of the group's blocks
  const float* masses;  ///< (nodes, kTreeRows): of the summaries, where any block closes them
  float* sums;          ///< (levels, columns, kTreeRows)
  float* bins;          ///< (thresholds, columns, kTreeRows): changes from one to the next
  float* error;         ///< (columns, kTreeRows)

  std::int64_t size() const { return group.sketch.value_depth * kTreeRows; }

  /// sum = over keys [begin, end).
  HWY_NOINLINE void AddKeys(std::int64_t begin, std::int64_t end, float* sum) const {
    HWY_ALIGN float ones[kTreeRows];
    std::fill_n(ones, kTreeRows, 1.0F);
    const float* rows[kNodeTile];
    for (std::int64_t first = begin; first < end; first += kNodeTile) {
      const std::int64_t count = std::min(kNodeTile, end - first);
      for (std::int64_t j = 0; j < count; ++j) {
        rows[j] = group.sketch.values + (first + j) * group.sketch.value_depth;
      }
      ValueTile<kTreeRows>(rows, count, weights + first * kTreeRows, group.sketch.value_depth,
                           TreeVectors(), ones, sum);
    }
  }

  /// The subtree's sum goes to level's part of `sums`; its nodes' errors to `bins`.
  void Visit(std::int64_t id, std::int64_t level) const {
    const FloatTag d;
    const auto step = static_cast<std::int64_t>(hn::Lanes(d));
    const Node& node = group.nodes.nodes[static_cast<std::size_t>(id)];
    float* sum = sums + level * size();
    std::fill_n(sum, size(), 0.0F);
    const auto tried = group.thresholds.size();
    // Where a block begins or ends to keep this summary, its error enters or leaves.
    struct Change {
      std::size_t threshold;
      HWY_ALIGN float sign[kTreeRows];
    };
    Change changes[2 * kGroupBlocks];
    int change_count = 0;
    const auto change = [&](std::size_t threshold, std::size_t block, float sign) HWY_ATTR {
      int i = 0;
      while (i < change_count && changes[i].threshold != threshold) ++i;
      if (i == change_count) {
        changes[change_count++].threshold = threshold;
        std::fill_n(changes[i].sign, kTreeRows, 0.0F);
      }
      std::fill(changes[i].sign + group.group.block_rows[block],
                changes[i].sign + group.group.block_rows[block + 1], sign);
    };
    bool opened = false;
    for (std::size_t b = 0; b < group.group.blocks.size(); ++b) {
      const std::size_t enter = decisions[b].enter[static_cast<std::size_t>(id)];
      const std::size_t leave = decisions[b].leave[static_cast<std::size_t>(id)];
      opened |= leave < tried;
      if (enter == leave) continue;
      change(enter, b, 1.0F);
      if (leave < tried) change(leave, b, -1.0F);
    }
    if (node.child_count == 0 || !opened) {
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
    if (change_count == 0) return;
    const float* mean = group.sketch.mean_values + id * group.sketch.value_depth;
    for (std::int64_t c = 0; c < kTreeRows; c += step) {
      const auto mass = hn::LoadU(d, masses + id * kTreeRows + c);
      for (std::int64_t r = 0; r < group.sketch.value_depth; ++r) {
        const std::int64_t at = r * kTreeRows + c;
        hn::StoreU(hn::NegMulAdd(mass, hn::Set(d, mean[r]), hn::LoadU(d, sum + at)), d, error + at);
      }
      for (int i = 0; i < change_count; ++i) {
        float* bin = bins + static_cast<std::int64_t>(changes[i].threshold) * size();
        const auto sign = hn::LoadU(d, changes[i].sign + c);
        for (std::int64_t at = c; at < size(); at += kTreeRows) {
          hn::StoreU(hn::MulAdd(sign, hn::LoadU(d, error + at), hn::LoadU(d, bin + at)), d,
                     bin + at);
        }
      }
    }
  }
};

/// Adds what the errors `lost` (columns, kTreeRows) that summaries leave in `total` do to out and
/// lse.
HWY_NOINLINE void AddErrors(const float* total, const float* lost, std::int64_t columns,
                            std::int64_t rows, std::size_t t, Measured& measured) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t mass = (columns - 1) * kTreeRows;
  HWY_ALIGN float squares[kTreeRows];
  for (std::int64_t c = 0; c < kTreeRows; c += step) {
    const auto whole = hn::LoadU(d, total + mass + c);
    const auto lost_mass = hn::LoadU(d, lost + mass + c);
    // A summary may have stood for all of a row's mass and have none itself.
    const auto left = hn::Max(hn::Sub(whole, lost_mass), hn::Mul(whole, hn::Set(d, 1e-15F)));
    const auto of_lost = hn::Div(hn::Set(d, 1.0F), left);
    const auto of_total = hn::Mul(hn::Div(lost_mass, whole), of_lost);
    auto sum = hn::Zero(d);
    for (std::int64_t r = 0; r + 1 < columns; ++r) {
      const std::int64_t at = r * kTreeRows + c;
      const auto error = hn::NegMulAdd(of_lost, hn::LoadU(d, lost + at),
                                       hn::Mul(of_total, hn::LoadU(d, total + at)));
      sum = hn::MulAdd(error, error, sum);
    }
    hn::StoreU(sum, d, squares + c);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    const double part = static_cast<double>(lost[mass + i]) / static_cast<double>(total[mass + i]);
    const double lse_error = std::log(std::max(1.0 - part, 1e-30));
    const double lse_square = lse_error * lse_error;
    const auto square = static_cast<double>(squares[i]);
    measured.lse_error[t] += lse_square;
    measured.lse_error_2[t] += lse_square * lse_square;
    measured.out_error[t] += square;
    measured.out_error_2[t] += square * square;
  }
}

/// |out|^2, summed over the rows.
HWY_NOINLINE double SquareOutputs(const float* total, std::int64_t columns, std::int64_t rows) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < rows; ++i) {
    const double mass = static_cast<double>(total[(columns - 1) * kTreeRows + i]);
    for (std::int64_t c = 0; c + 1 < columns; ++c) {
      const double out = static_cast<double>(total[c * kTreeRows + i]) / mass;
      sum += out * out;
    }
  }
  return sum;
}

void MeasureExact(const GroupTask& group, ExactRows& result) {
  MeasureScratch& scratch = OfThread<MeasureScratch>();
  HWY_ALIGN float max[kTreeRows];
  float* weights = scratch.exact.Need(static_cast<std::size_t>(group.nodes.key_count * kTreeRows));
  WeighKeys(group.nodes, SampledLanes(group), group.run, weights, max);
  const Subtrees subtrees{group, weights, nullptr, nullptr, nullptr, nullptr, nullptr};
  float* total = scratch.sums.Need(static_cast<std::size_t>(subtrees.size()));
  std::fill_n(total, subtrees.size(), 0.0F);
  subtrees.AddKeys(0, group.nodes.key_count, total);
  const std::int64_t columns = group.sketch.value_depth;
  const std::int64_t rows = std::ssize(group.group.queries);
  result.square_output = SquareOutputs(total, columns, rows) / static_cast<double>(rows);
  for (std::int64_t i = 0; i < rows; ++i) {
    std::int32_t ranks[2 * kNear + 1];
    const std::int64_t near =
        NearKeys(group.nodes, group.group.queries[static_cast<std::size_t>(i)], ranks);
    for (std::int64_t j = 0; j < near; ++j) {
      result.near_share += static_cast<double>(weights[ranks[j] * kTreeRows + i]) /
                           static_cast<double>(total[(columns - 1) * kTreeRows + i]) /
                           static_cast<double>(rows);
    }
  }
}

void MeasureGroup(const GroupTask& group, Measured& measured) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  const NodesView& nodes = group.nodes;
  const CalibrationTask& task = group.task;
  MeasureScratch& scratch = OfThread<MeasureScratch>();
  const auto tried = static_cast<std::int64_t>(group.thresholds.size());
  std::array<Measured, static_cast<std::size_t>(kGroupBlocks)> of_blocks;
  ParallelFor(std::ssize(group.group.blocks), group.run, [&](std::int64_t i) {
    const auto b = static_cast<std::size_t>(i);
    const auto block = static_cast<std::size_t>(group.group.blocks[b]);
    Decide(group,
           LoadLanes(task.queries, task.bounds[block], task.bounds[block + 1], nodes.depth,
                     task.scale, task.basis, task.profiles),
           OfThread<MeasureScratch>(), scratch.decisions[b], of_blocks[b]);
  });
  for (std::size_t b = 0; b < group.group.blocks.size(); ++b) measured.Add(of_blocks[b]);

  // Masses of the summaries that any block keeps at any threshold, for the sampled rows.
  std::vector<std::int32_t>& closed = scratch.closed;
  closed.clear();
  for (std::size_t id = 0; id < nodes.nodes.size(); ++id) {
    for (std::size_t b = 0; b < group.group.blocks.size(); ++b) {
      if (scratch.decisions[b].enter[id] == scratch.decisions[b].leave[id]) continue;
      closed.push_back(static_cast<std::int32_t>(id));
      break;
    }
  }
  const QueryLanes lanes = SampledLanes(group);
  HWY_ALIGN float max[kTreeRows];
  float* weights = scratch.exact.Need(static_cast<std::size_t>(nodes.key_count * kTreeRows));
  WeighKeys(nodes, lanes, group.run, weights, max);
  const auto count = static_cast<std::int64_t>(closed.size());
  float* logits = scratch.logits.Need(static_cast<std::size_t>(count * kTreeRows));
  float* masses = scratch.masses.Need(nodes.nodes.size() * static_cast<std::size_t>(kTreeRows));
  NodeLogitsTile(nodes, lanes, closed.data(), count, logits, nullptr);
  for (std::int64_t j = 0; j < count; ++j) {
    for (std::int64_t c = 0; c < kTreeRows; c += step) {
      // A summary of 2^20 times the largest exact weight is as wrong as can be.
      const auto logit = hn::Sub(hn::LoadU(d, logits + j * kTreeRows + c), hn::LoadU(d, max + c));
      hn::StoreU(Exp2(d, hn::Min(logit, hn::Set(d, 20.0F))), d,
                 masses + closed[static_cast<std::size_t>(j)] * kTreeRows + c);
    }
  }

  const std::int64_t columns = group.sketch.value_depth;
  const std::int64_t size = columns * kTreeRows;
  float* bins = scratch.bins.Need(static_cast<std::size_t>(tried * size));
  float* total = scratch.sums.Need(static_cast<std::size_t>((group.levels + 1) * size));
  std::fill_n(bins, tried * size, 0.0F);
  std::fill_n(total, size, 0.0F);
  float* sums = total + size;
  const Subtrees subtrees{group,
                          weights,
                          scratch.decisions.data(),
                          masses,
                          sums,
                          bins,
                          scratch.error.Need(static_cast<std::size_t>(size))};
  subtrees.AddKeys(0, nodes.sinks(), total);
  for (std::int64_t root = 0; root < nodes.roots(); ++root) {
    subtrees.Visit(root, 0);
    for (std::int64_t i = 0; i < size; ++i) total[i] += sums[i];
  }
  measured.out += SquareOutputs(total, columns, lanes.rows);
  measured.rows += lanes.rows;
  // The errors present at threshold t: all that entered and have not left.
  for (std::int64_t t = 0; t < tried; ++t) {
    float* bin = bins + t * size;
    for (std::int64_t i = 0; t > 0 && i < size; ++i) bin[i] += bin[i - size];
    AddErrors(total, bin, columns, lanes.rows, static_cast<std::size_t>(t), measured);
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf {

namespace kernels {
HWY_EXPORT(MeasureExact);
HWY_EXPORT(MeasureGroup);
}  // namespace kernels

namespace {

/// Group g of `groups`: sampled blocks g, g + groups and so on.
SampledGroup Sample(const CalibrationTask& task, std::int64_t samples, std::int64_t g,
                    std::int64_t groups) {
  SampledGroup group;
  const std::int64_t blocks = std::ssize(task.bounds) - 1;
  for (std::int64_t i = g; i < samples; i += groups) {
    const std::int64_t block = (2 * i + 1) * blocks / (2 * samples);  // evenly spread
    group.blocks.push_back(block);
    const std::int64_t begin = task.bounds[static_cast<std::size_t>(block)];
    const std::int64_t count = task.bounds[static_cast<std::size_t>(block) + 1] - begin;
    // Different rows: one from each equal part of the block.
    const std::int64_t wanted = std::min(count, kRowsABlock);
    for (std::int64_t r = 0; r < wanted; ++r) {
      const std::int64_t low = count * r / wanted;
      const std::int64_t high = count * (r + 1) / wanted;
      const std::int64_t within = RandomBetween(low, high, task.seed, kRowStream,
                                                static_cast<std::uint64_t>(i * kRowsABlock + r));
      group.queries.push_back(static_cast<std::int32_t>(task.queries.Position(begin + within)));
    }
    group.block_rows[group.blocks.size()] = std::ssize(group.queries);
  }
  return group;
}

}  // namespace

SampledRows::SampledRows(const kernels::NodesView& nodes, const kernels::NodesView& sketch,
                         const CalibrationTask& task)
    : nodes_(nodes), sketch_(sketch), task_(task) {
  const std::int64_t blocks = std::ssize(task.bounds) - 1;
  const double growth = std::sqrt(static_cast<double>(blocks) / kBlocksOfFewest);
  const auto samples = std::min(
      blocks,
      static_cast<std::int64_t>(static_cast<double>(kFewestSampled) * std::max(1.0, growth)));
  const std::int64_t groups = (samples + kGroupBlocks - 1) / kGroupBlocks;
  for (std::int64_t g = 0; g < groups; ++g) groups_.push_back(Sample(task, samples, g, groups));
}

std::int64_t SampledRows::count() const {
  std::int64_t rows = 0;
  for (const SampledGroup& group : groups_) rows += std::ssize(group.queries);
  return rows;
}

ExactRows SampledRows::Exact() const {
  using namespace kernels;
  ExactRows result;
  HWY_DYNAMIC_DISPATCH(MeasureExact)
  ({nodes_, sketch_, task_, groups_[0], {}, {}, 0, task_.run}, result);
  return result;
}

void Measured::Add(const Measured& other) {
  for (std::size_t t = 0; t < kMostThresholds; ++t) {
    out_error[t] += other.out_error[t];
    lse_error[t] += other.lse_error[t];
    out_error_2[t] += other.out_error_2[t];
    lse_error_2[t] += other.lse_error_2[t];
    exact[t] += other.exact[t];
    closed[t] += other.closed[t];
    visited[t] += other.visited[t];
  }
  out += other.out;
  rows += other.rows;
  blocks += other.blocks;
}

Measured SampledRows::Measure(std::span<const float> thresholds, const Scoring& scoring,
                              std::int64_t begin, std::int64_t end) const {
  std::vector<Measured> parts(static_cast<std::size_t>(end - begin));
  const std::int64_t levels =
      std::ssize(kernels::LevelBegins(nodes_.nodes, nodes_.segments[0])) - 1;
  ParallelFor(end - begin, task_.run, [&](std::int64_t g) {
    using namespace kernels;
    HWY_DYNAMIC_DISPATCH(MeasureGroup)
    ({nodes_, sketch_, task_, groups_[static_cast<std::size_t>(begin + g)], thresholds, scoring,
      levels, end - begin == 1 ? task_.run : task_.run.Alone()},
     parts[static_cast<std::size_t>(g)]);
  });
  Measured sum;
  for (const Measured& part : parts) sum.Add(part);
  return sum;
}

}  // namespace smyrf
#endif
