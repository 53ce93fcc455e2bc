// Attention of a block of `tree`: one softmax over the summaries of closed nodes and the keys of
// opened ones.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "base/workspace.h"
#include "methods/tree/kernels/nodes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "methods/tree/kernels/attend_nodes.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "methods/tree/kernels/nodes-inl.h"
#include "simd/exp-inl.h"
#include "simd/softmax-inl.h"

#ifndef SMYRF_ATTEND_NODES_ONCE_
#define SMYRF_ATTEND_NODES_ONCE_
namespace smyrf::kernels {
namespace {

struct NodeScratch {
  Buffer rows, coordinates, q, lanes, squares, energies, scores, shares, out, state;
  const float* queries[kTreeRows];
  std::int32_t positions[kTreeRows];
  std::int64_t bytes() const {
    return BytesOf(rows, coordinates, q, lanes, squares, energies, scores, shares, out, state);
  }
};

}  // namespace
}  // namespace smyrf::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

QueryLanes LoadLanesImpl(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth,
                         double scale, const float* basis, std::span<const float> profiles) {
  constexpr double kLog2E = 1.44269504088896340736;
  NodeScratch& scratch = OfThread<NodeScratch>();
  const std::int64_t count = end - begin;
  const float** pointers = scratch.queries;
  FloatRows(rows, begin, count, depth, scratch.rows, pointers);
  for (std::int64_t i = 0; i < count; ++i) {
    scratch.positions[i] = static_cast<std::int32_t>(rows.Position(begin + i));
  }
  float* q = scratch.q.Need(static_cast<std::size_t>(depth * kTreeRows));
  float* lanes = scratch.lanes.Need(kCoordinates * kTreeRows);
  float* squares = scratch.squares.Need(kCoordinates * kTreeRows);
  float* coordinates = scratch.coordinates.Need(kTreeRows * kCoordinates);
  if (count < kTreeRows) std::fill_n(q, depth * kTreeRows, 0.0F);
  const auto logit_scale = static_cast<float>(scale * kLog2E);
  TransposeRows(pointers, count, depth, logit_scale, kTreeRows, q);
  constexpr auto kWide = static_cast<int>(kCoordinates);
  ScoreTile<kWide>(pointers, count, basis, depth,
                   kCoordinates / static_cast<std::int64_t>(hn::Lanes(FloatTag())), coordinates);
  const float* rows_of_coordinates[kTreeRows];
  for (std::int64_t i = 0; i < count; ++i) {
    rows_of_coordinates[i] = coordinates + i * kCoordinates;
  }
  if (count < kTreeRows) std::fill_n(lanes, kCoordinates * kTreeRows, 0.0F);
  TransposeRows(rows_of_coordinates, count, kCoordinates, static_cast<float>(scale), kTreeRows,
                lanes);
  // Finite squares: equal keys have no variance, and 0 times infinity is not 0.
  constexpr float kMost = 1e18F;
  for (std::int64_t i = 0; i < kCoordinates * kTreeRows; ++i) {
    lanes[i] = std::clamp(lanes[i], -kMost, kMost);
    squares[i] = lanes[i] * lanes[i];
  }
  const auto roots = static_cast<std::int64_t>(profiles.size()) / kCoordinates;
  float* energies = scratch.energies.Need(static_cast<std::size_t>(roots * kTreeRows));
  const float* rows_of_profiles[kNodeTile];
  for (std::int64_t begin_root = 0; begin_root < roots; begin_root += kNodeTile) {
    const std::int64_t tile = std::min(kNodeTile, roots - begin_root);
    for (std::int64_t r = 0; r < tile; ++r) {
      rows_of_profiles[r] = profiles.data() + (begin_root + r) * kCoordinates;
    }
    ScoreTile<kTreeRows>(rows_of_profiles, tile, squares, kCoordinates, TreeVectors(),
                         energies + begin_root * kTreeRows);
  }
  return {count, q, lanes, energies, pointers, scratch.positions, logit_scale};
}

void NodeLogitsImpl(const NodesView& nodes, const QueryLanes& lanes,
                    std::span<const std::int32_t> ids, float* logits) {
  NodeLogitsTile(nodes, lanes, ids.data(), static_cast<std::int64_t>(ids.size()), logits, nullptr);
}

Partial AttendNodesImpl(const NodesView& nodes, const QueryLanes& lanes,
                        std::span<const std::int32_t> closed, const float* closed_logits,
                        std::span<const KeyRange> ranges) {
  NodeScratch& scratch = OfThread<NodeScratch>();
  const std::int64_t dv = nodes.value_depth;
  const std::int64_t vectors = TreeVectors();
  float* s = scratch.scores.Need(kNodeTile * kTreeRows);
  const auto lanes_of_floats = static_cast<std::int64_t>(hn::Lanes(FloatTag()));
  const std::int64_t columns = (dv + lanes_of_floats - 1) / lanes_of_floats;  // vectors of them
  const std::int64_t stride = PaddedDepth(dv);
  float* o = scratch.out.Need(static_cast<std::size_t>(kTreeRows * stride));
  float* max = scratch.state.Need(3 * kTreeRows);
  float* sum = max + kTreeRows;
  float* rescale = sum + kTreeRows;
  std::fill_n(max, kTreeRows, -std::numeric_limits<float>::infinity());
  std::fill_n(sum, kTreeRows, 0.0F);
  std::fill_n(o, kTreeRows * stride, 0.0F);
  const float* keys[kNodeTile];
  const float* values[kNodeTile];
  std::int64_t filled = 0;
  std::int64_t scored = 0;  // rows of the tile whose logits are given
  const auto flush = [&]() HWY_ATTR {
    if (filled == 0) return;
    ScoreTile<kTreeRows>(keys + scored, filled - scored, lanes.q, nodes.depth, vectors,
                         s + scored * kTreeRows);
    SoftmaxTile<kTreeRows>(filled, vectors, max, sum, rescale, s);
    OutputTile<kTreeRows>(values, filled, s, lanes.rows, columns, rescale, o, stride);
    filled = scored = 0;
  };
  for (std::size_t j = 0; j < closed.size(); ++j) {
    values[filled] = nodes.mean_values + closed[j] * dv;
    std::copy_n(closed_logits + static_cast<std::int64_t>(j) * kTreeRows, kTreeRows,
                s + filled * kTreeRows);
    scored = ++filled;
    if (filled == kNodeTile) flush();
  }
  for (const KeyRange& range : ranges) {
    for (std::int64_t j = range.begin; j < range.end; ++j) {
      keys[filled] = nodes.keys + j * nodes.depth;
      values[filled] = nodes.values + j * dv;
      if (++filled == kNodeTile) flush();
    }
  }
  flush();

  const Partial partial{o, max, sum, dv, stride};
  const bool any = !closed.empty() || !ranges.empty();
  for (std::int64_t i = 0; i < lanes.rows; ++i) ClosePartial(partial.Row(i), any);
  return partial;
}

void AddSharesImpl(const Rows& keys, std::int64_t count, std::int64_t depth,
                   const QueryLanes& lanes, float* shares) {
  const FloatTag d;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  NodeScratch& scratch = OfThread<NodeScratch>();
  float* scores = scratch.shares.Need(static_cast<std::size_t>(count * kTreeRows));
  HWY_ALIGN float max[kTreeRows];
  HWY_ALIGN float sum[kTreeRows];
  ScoreRows(keys, count, depth, lanes, scratch.rows, scores);
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

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf::kernels {

HWY_EXPORT(LoadLanesImpl);
HWY_EXPORT(NodeLogitsImpl);
HWY_EXPORT(AttendNodesImpl);
HWY_EXPORT(AddSharesImpl);

QueryLanes LoadLanes(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth,
                     double scale, const float* basis, std::span<const float> profiles) {
  return HWY_DYNAMIC_DISPATCH(LoadLanesImpl)(rows, begin, end, depth, scale, basis, profiles);
}

void NodeLogits(const NodesView& nodes, const QueryLanes& lanes, std::span<const std::int32_t> ids,
                float* logits) {
  HWY_DYNAMIC_DISPATCH(NodeLogitsImpl)(nodes, lanes, ids, logits);
}

Partial AttendNodes(const NodesView& nodes, const QueryLanes& lanes,
                    std::span<const std::int32_t> closed, const float* closed_logits,
                    std::span<const KeyRange> ranges) {
  return HWY_DYNAMIC_DISPATCH(AttendNodesImpl)(nodes, lanes, closed, closed_logits, ranges);
}

void AddShares(const Rows& keys, std::int64_t count, std::int64_t depth, const QueryLanes& lanes,
               float* shares) {
  HWY_DYNAMIC_DISPATCH(AddSharesImpl)(keys, count, depth, lanes, shares);
}

}  // namespace smyrf::kernels
#endif
