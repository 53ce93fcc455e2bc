// Gradients of a block of `tree`: as BackwardBlock, with summaries of closed nodes as further keys
// whose logits depend on the variances of what they stand for.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/workspace.h"
#include "methods/tree/kernels/backward_nodes.h"
#include "methods/tree/kernels/nodes.h"
#include "simd/backward.h"
#include "simd/block.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "methods/tree/kernels/backward_nodes.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "methods/tree/kernels/nodes-inl.h"
#include "simd/backward-inl.h"

#ifndef SMYRF_BACKWARD_NODES_ONCE_
#define SMYRF_BACKWARD_NODES_ONCE_
namespace smyrf::kernels {
namespace {

struct BackwardNodesScratch {
  Buffer grad_rows, out_rows, zeros, g, q_rows, g_rows, dq, by_basis, by_energies, result, basis;
  std::int64_t bytes() const {
    return BytesOf(grad_rows, out_rows, zeros, g, q_rows, g_rows, dq, by_basis, by_energies, result,
                   basis);
  }
};

}  // namespace
}  // namespace smyrf::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Rows [0, filled) of a tile, summaries first, then keys; and what the block's queries, a lane
/// each, make of them.
struct NodeTile {
  const float* keys[kNodeTile];
  const float* values[kNodeTile];
  float* grad_keys[kNodeTile];
  float* grad_values[kNodeTile];
  std::int32_t ids[kNodeTile];  ///< of summaries
  std::int64_t filled = 0;
  std::int64_t closed = 0;                    ///< how many are summaries
  HWY_ALIGN float p[kNodeTile * kTreeRows];   ///< weights; at first logits, of summaries
  HWY_ALIGN float ds[kNodeTile * kTreeRows];  ///< gradients of logits
};

/// What a block's queries bring. Nothing of one whose lse is -inf.
struct BlockQueries {
  const float* g;       ///< grad_out: (Dv, kTreeRows)
  const float* g_rows;  ///< the same: (kTreeRows, PaddedDepth(Dv))
  const float* q_rows;  ///< scale q: (kTreeRows, PaddedDepth(D))
  HWY_ALIGN float lse[kTreeRows];
  HWY_ALIGN float delta[kTreeRows];
};

/// What a block's summaries add to the gradient of its queries' coordinates.
struct CoordinateGradients {
  float* by_axes;      ///< (kCoordinates, kTreeRows)
  float* by_energies;  ///< (roots, kTreeRows): twice the gradient of QueryLanes::energies
};

/// Of the gradients of the logits of a tile's summaries: what goes through the variance u that a
/// logit has over a node, c(u) = u / 2 or sqrt(2 u ln n) - ln n.
HWY_NOINLINE void AddVarianceGradients(const NodesView& nodes, const QueryLanes& lanes,
                                       const float* directions, const NodeTile& tile,
                                       const float* ones, const CoordinateGradients& to,
                                       const NodeGradients& gradients) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t vectors = TreeVectors();
  const float* axes[kNodeTile];
  const float* units[kNodeTile];
  for (std::int64_t j = 0; j < tile.closed; ++j) {
    const std::int64_t at = tile.ids[j] * kCoordinates;
    axes[j] = nodes.axes + at;
    units[j] = directions + at;
  }
  HWY_ALIGN float on_axis[kNodeTile * kTreeRows];
  HWY_ALIGN float on_unit[kNodeTile * kTreeRows];
  ScoreTile<kTreeRows>(axes, tile.closed, lanes.coordinates, kCoordinates, vectors, on_axis);
  ScoreTile<kTreeRows>(units, tile.closed, lanes.coordinates, kCoordinates, vectors, on_unit);
  for (std::int64_t j = 0; j < tile.closed; ++j) {
    const std::int32_t id = tile.ids[j];
    const auto ln = hn::Set(d, nodes.log_counts[id]);
    const auto half = hn::Set(d, 0.5F);
    const auto residual = hn::Set(d, nodes.residuals[id]);
    const std::int64_t root = nodes.root_of[id] * kTreeRows;
    auto along = hn::Zero(d);
    auto rest = hn::Zero(d);
    for (std::int64_t c = 0; c < kTreeRows; c += step) {
      const std::int64_t at = j * kTreeRows + c;
      const auto axis = hn::LoadU(d, on_axis + at);
      const auto unit = hn::LoadU(d, on_unit + at);
      const auto energy = hn::LoadU(d, lanes.energies + root + c);
      const auto variance = LogitVariance(axis, energy, residual);
      const auto wide = hn::Sqrt(hn::Div(hn::Mul(half, ln), variance));
      const auto slope = hn::IfThenElse(hn::Gt(variance, hn::Add(ln, ln)), wide, half);
      const auto du = hn::Mul(hn::LoadU(d, tile.ds + at), slope);
      const auto twice = hn::Add(du, du);
      along = hn::MulAdd(hn::Mul(du, unit), unit, along);
      rest = hn::MulAdd(du, energy, rest);
      hn::StoreU(hn::Mul(twice, axis), d, on_axis + at);
      float* by_energy = to.by_energies + root + c;
      hn::StoreU(hn::MulAdd(twice, residual, hn::LoadU(d, by_energy)), d, by_energy);
    }
    gradients.along[id] += hn::GetLane(hn::SumOfLanes(d, along));
    gradients.rest[id] += hn::GetLane(hn::SumOfLanes(d, rest));
  }
  ValueTile<kTreeRows>(axes, tile.closed, on_axis, kCoordinates, vectors, ones, to.by_axes);
}

/// The gradient of scale q query_basis: both parts of CoordinateGradients in by_axes.
HWY_INLINE void AddEnergyGradients(const QueryLanes& lanes, std::span<const float> profiles,
                                   const float* ones, const CoordinateGradients& to) {
  HWY_ALIGN float factors[kCoordinates * kTreeRows] = {};
  const auto roots = static_cast<std::int64_t>(profiles.size()) / kCoordinates;
  const float* rows[kNodeTile];
  for (std::int64_t first = 0; first < roots; first += kNodeTile) {
    const std::int64_t tile = std::min(kNodeTile, roots - first);
    for (std::int64_t r = 0; r < tile; ++r) rows[r] = profiles.data() + (first + r) * kCoordinates;
    ValueTile<kTreeRows>(rows, tile, to.by_energies + first * kTreeRows, kCoordinates,
                         TreeVectors(), ones, factors);
  }
  for (std::int64_t i = 0; i < kCoordinates * kTreeRows; ++i) {
    to.by_axes[i] += lanes.coordinates[i] * factors[i];
  }
}

HWY_INLINE void LoadQueries(const NodesView& nodes, const QueryLanes& lanes,
                            const NodesBackwardTask& task, BackwardNodesScratch& scratch,
                            BlockQueries& block) {
  const std::int64_t depth = nodes.depth;
  const std::int64_t dv = nodes.value_depth;
  float* zeros = scratch.zeros.Need(static_cast<std::size_t>(std::max(depth, dv)));
  std::fill_n(zeros, std::max(depth, dv), 0.0F);
  float* grad_rows = scratch.grad_rows.Need(static_cast<std::size_t>(kTreeRows * dv));
  float* out_row = scratch.out_rows.Need(static_cast<std::size_t>(dv));
  const float* queries[kTreeRows];
  const float* grads[kTreeRows];
  std::fill_n(block.lse, kTreeRows, kInfinity);
  std::fill_n(block.delta, kTreeRows, 0.0F);
  for (std::int64_t i = 0; i < lanes.rows; ++i) {
    const std::int64_t position = lanes.positions[i];
    queries[i] = grads[i] = zeros;
    if (task.lse[position] == -kInfinity) continue;
    block.lse[i] = task.lse[position] * kLog2E;
    queries[i] = lanes.queries[i];
    grads[i] = grad_rows + i * dv;
    LoadRow(task.grad_out.Row(position), task.grad_out.dtype, dv, grad_rows + i * dv);
    LoadRow(task.out.Row(position), task.out.dtype, dv, out_row);
    block.delta[i] = Dot(grads[i], out_row, dv);
    if (task.grad_lse != nullptr) block.delta[i] -= task.grad_lse[position];
  }
  float* g = scratch.g.Need(static_cast<std::size_t>(dv * kTreeRows));
  std::fill_n(g, dv * kTreeRows, 0.0F);
  TransposeRows(grads, lanes.rows, dv, 1.0F, kTreeRows, g);
  float* q_rows = scratch.q_rows.Need(static_cast<std::size_t>(kTreeRows * PaddedDepth(depth)));
  float* g_rows = scratch.g_rows.Need(static_cast<std::size_t>(kTreeRows * PaddedDepth(dv)));
  PadRows(queries, lanes.rows, depth, task.scale, q_rows);
  PadRows(grads, lanes.rows, dv, 1.0F, g_rows);
  block.g = g;
  block.q_rows = q_rows;
  block.g_rows = g_rows;
}

/// (rows, D): scale times both what goes through keys, dq (rows, PaddedDepth(D)), and what goes
/// through coordinates, by_axes.
HWY_INLINE const float* QueryGradients(const QueryLanes& lanes, const NodesBackwardTask& task,
                                       std::int64_t depth, const float* dq, const float* by_axes,
                                       BackwardNodesScratch& scratch) {
  float* by_basis = scratch.by_basis.Need(static_cast<std::size_t>(depth * kTreeRows));
  const float* basis[kNodeTile];
  for (std::int64_t first = 0; first < depth; first += kNodeTile) {
    const std::int64_t count = std::min(kNodeTile, depth - first);
    for (std::int64_t r = 0; r < count; ++r) {
      basis[r] = task.query_basis + (first + r) * kCoordinates;
    }
    ScoreTile<kTreeRows>(basis, count, by_axes, kCoordinates, TreeVectors(),
                         by_basis + first * kTreeRows);
  }
  const std::int64_t stride = PaddedDepth(depth);
  float* result = scratch.result.Need(static_cast<std::size_t>(kTreeRows * depth));
  for (std::int64_t i = 0; i < lanes.rows; ++i) {
    for (std::int64_t c = 0; c < depth; ++c) {
      result[i * depth + c] = task.scale * (dq[i * stride + c] + by_basis[c * kTreeRows + i]);
    }
  }
  return result;
}

const float* BackwardNodesImpl(const NodesView& nodes, const QueryLanes& lanes,
                               const NodesBackwardTask& task, const NodeGradients& to) {
  BackwardNodesScratch& scratch = OfThread<BackwardNodesScratch>();
  const auto step = static_cast<std::int64_t>(hn::Lanes(FloatTag()));
  const std::int64_t vectors = TreeVectors();
  const std::int64_t depth = nodes.depth;
  const std::int64_t dv = nodes.value_depth;
  const std::int64_t key_stride = PaddedDepth(depth);
  const std::int64_t value_stride = PaddedDepth(dv);
  BlockQueries block;
  LoadQueries(nodes, lanes, task, scratch, block);
  HWY_ALIGN float ones[kTreeRows];
  std::fill_n(ones, kTreeRows, 1.0F);
  float* dq = scratch.dq.Need(static_cast<std::size_t>(kTreeRows * key_stride));
  std::fill_n(dq, kTreeRows * key_stride, 0.0F);
  HWY_ALIGN float by_axes[kCoordinates * kTreeRows] = {};
  const auto roots = static_cast<std::int64_t>(task.profiles.size()) / kCoordinates;
  float* by_energies = scratch.by_energies.Need(static_cast<std::size_t>(roots * kTreeRows));
  std::fill_n(by_energies, roots * kTreeRows, 0.0F);
  const CoordinateGradients coordinates{by_axes, by_energies};

  NodeTile tile;
  const auto flush = [&]() HWY_ATTR {
    if (tile.filled == 0) return;
    ScoreTile<kTreeRows>(tile.keys + tile.closed, tile.filled - tile.closed, lanes.q, depth,
                         vectors, tile.p + tile.closed * kTreeRows);
    ScoreTile<kTreeRows>(tile.values, tile.filled, block.g, dv, vectors, tile.ds);
    GradientTile<kTreeRows>(tile.filled, vectors, block.lse, block.delta, tile.p, tile.ds);
    OutputTile<kTreeRows>(tile.keys, tile.filled, tile.ds, lanes.rows, (depth + step - 1) / step,
                          ones, dq, key_stride);
    AddTile<kTreeRows>(tile.ds, tile.filled, lanes.rows, block.q_rows, key_stride,
                       (depth + step - 1) / step, tile.grad_keys);
    AddTile<kTreeRows>(tile.p, tile.filled, lanes.rows, block.g_rows, value_stride,
                       (dv + step - 1) / step, tile.grad_values);
    if (tile.closed > 0) {
      AddVarianceGradients(nodes, lanes, task.directions, tile, ones, coordinates, to);
    }
    tile.filled = tile.closed = 0;
  };
  const auto add = [&](const float* key, const float* value, float* grad_key, float* grad_value) {
    tile.keys[tile.filled] = key;
    tile.values[tile.filled] = value;
    tile.grad_keys[tile.filled] = grad_key;
    tile.grad_values[tile.filled++] = grad_value;
  };
  for (std::size_t j = 0; j < task.closed.size(); ++j) {
    const std::int64_t id = task.closed[j];
    tile.ids[tile.filled] = task.closed[j];
    std::copy_n(task.closed_logits + static_cast<std::int64_t>(j) * kTreeRows, kTreeRows,
                tile.p + tile.filled * kTreeRows);
    add(nodes.mean_keys + id * depth, nodes.mean_values + id * dv, to.mean_keys + id * key_stride,
        to.mean_values + id * value_stride);
    tile.closed = tile.filled;
    if (tile.filled == kNodeTile) flush();
  }
  for (const KeyRange& range : task.ranges) {
    for (std::int64_t j = range.begin; j < range.end; ++j) {
      add(nodes.keys + j * depth, nodes.values + j * dv, to.keys + j * key_stride,
          to.values + j * value_stride);
      if (tile.filled == kNodeTile) flush();
    }
  }
  flush();
  AddEnergyGradients(lanes, task.profiles, ones, coordinates);
  return QueryGradients(lanes, task, depth, dq, by_axes, scratch);
}

void AddCoordinatesImpl(const float* x, std::int64_t count, std::int64_t depth, const float* basis,
                        float* grad_keys) {
  constexpr auto kWide = static_cast<int>(kCoordinates);
  const auto step = static_cast<std::int64_t>(hn::Lanes(FloatTag()));
  const std::int64_t stride = PaddedDepth(depth);
  float* transposed =
      OfThread<BackwardNodesScratch>().basis.Need(static_cast<std::size_t>(kCoordinates * stride));
  std::fill_n(transposed, kCoordinates * stride, 0.0F);
  for (std::int64_t r = 0; r < depth; ++r) {
    for (std::int64_t c = 0; c < kCoordinates; ++c) {
      transposed[c * stride + r] = basis[r * kCoordinates + c];
    }
  }
  float* targets[kNodeTile];
  for (std::int64_t begin = 0; begin < count; begin += kNodeTile) {
    const std::int64_t tile = std::min(kNodeTile, count - begin);
    for (std::int64_t j = 0; j < tile; ++j) targets[j] = grad_keys + (begin + j) * stride;
    AddTile<kWide>(x + begin * kCoordinates, tile, kCoordinates, transposed, stride,
                   (depth + step - 1) / step, targets);
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf::kernels {

HWY_EXPORT(BackwardNodesImpl);
HWY_EXPORT(AddCoordinatesImpl);

const float* BackwardNodes(const NodesView& nodes, const QueryLanes& lanes,
                           const NodesBackwardTask& task, const NodeGradients& to) {
  return HWY_DYNAMIC_DISPATCH(BackwardNodesImpl)(nodes, lanes, task, to);
}

void AddCoordinates(const float* x, std::int64_t count, std::int64_t depth, const float* basis,
                    float* grad_keys) {
  HWY_DYNAMIC_DISPATCH(AddCoordinatesImpl)(x, count, depth, basis, grad_keys);
}

}  // namespace smyrf::kernels
#endif
