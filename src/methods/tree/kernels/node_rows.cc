// What `tree`'s planner does to rows: moments, coordinates, principal directions, node statistics.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "base/workspace.h"
#include "methods/tree/kernels/nodes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "methods/tree/kernels/node_rows.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "simd/tile-inl.h"

#ifndef SMYRF_NODE_ROWS_ONCE_
#define SMYRF_NODE_ROWS_ONCE_
namespace smyrf::kernels {
namespace {

constexpr std::int64_t kDirectionRows = 128;  // that directions are computed from
constexpr std::int64_t kRowTile = 128;

struct NodeRowScratch {
  Buffer converted, tile;
  std::int64_t bytes() const { return BytesOf(converted, tile); }
};

}  // namespace
}  // namespace smyrf::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using OneTag = hn::CappedTag<float, 1>;

/// body(tag, i) for whole vectors and then, one lane wide, for what is left of `count`.
template <class Body>
HWY_INLINE void ForLanes(std::int64_t count, const Body& body) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) body(d, i);
  for (; i < count; ++i) body(OneTag(), i);
}

void GramImpl(const float* rows, std::int64_t count, std::int64_t depth, float* gram) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(FloatTag()));
  NodeRowScratch& scratch = OfThread<NodeRowScratch>();
  float* columns = scratch.tile.Need(kRowTile * kBlockRows);
  float* block = scratch.converted.Need(static_cast<std::size_t>(depth * kBlockRows));
  float ones[kBlockRows];
  std::fill_n(ones, kBlockRows, 1.0F);
  const float* pointers[kRowTile];
  for (std::int64_t first = 0; first < depth; first += kBlockRows) {
    const std::int64_t width = std::min(kBlockRows, depth - first);
    std::fill_n(block, depth * kBlockRows, 0.0F);
    std::fill_n(columns, kRowTile * kBlockRows, 0.0F);
    for (std::int64_t begin = 0; begin < count; begin += kRowTile) {
      const std::int64_t tile = std::min(kRowTile, count - begin);
      for (std::int64_t j = 0; j < tile; ++j) {
        pointers[j] = rows + (begin + j) * depth;
        std::copy_n(pointers[j] + first, width, columns + j * kBlockRows);
      }
      ValueTile<kBlockRows>(pointers, tile, columns, depth, (width + lanes - 1) / lanes, ones,
                            block);
    }
    for (std::int64_t r = 0; r < depth; ++r) {
      std::copy_n(block + r * kBlockRows, width, gram + r * depth + first);
    }
  }
}

void CoordinatesImpl(const Rows& rows, std::int64_t begin, std::int64_t count, std::int64_t depth,
                     const float* basis, float* target) {
  const float* pointers[kRowTile];
  for (std::int64_t first = 0; first < count; first += kRowTile) {
    const std::int64_t tile = std::min(kRowTile, count - first);
    FloatRows(rows, begin + first, tile, depth, OfThread<NodeRowScratch>().converted, pointers);
    ScoreTile<static_cast<int>(kCoordinates)>(
        pointers, tile, basis, depth,
        kCoordinates / static_cast<std::int64_t>(hn::Lanes(FloatTag())),
        target + first * kCoordinates);
  }
}

/// Power iterations from the row that is farthest from the mean.
void LeadingDirectionImpl(const float* coordinates, std::span<const std::int32_t> order,
                          float* direction) {
  constexpr int kIterations = 4;
  const hn::CappedTag<float, kCoordinates> d;
  constexpr int kParts = static_cast<int>(kCoordinates / hn::MaxLanes(d));
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto dot = [&](const float* a, const float* b) HWY_ATTR {
    auto sum = hn::Zero(d);
    SMYRF_UNROLL
    for (int i = 0; i < kParts; ++i) {
      sum = hn::MulAdd(hn::LoadU(d, a + i * lanes), hn::LoadU(d, b + i * lanes), sum);
    }
    return hn::GetLane(hn::SumOfLanes(d, sum));
  };
  // y += a x
  const auto add = [&](float a, const float* x, float* y) HWY_ATTR {
    const auto factor = hn::Set(d, a);
    SMYRF_UNROLL
    for (int i = 0; i < kParts; ++i) {
      const std::int64_t at = i * lanes;
      hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, x + at), hn::LoadU(d, y + at)), d, y + at);
    }
  };
  const auto all = static_cast<std::int64_t>(order.size());
  const std::int64_t step = (all + kDirectionRows - 1) / kDirectionRows;
  const std::int64_t count = (all + step - 1) / step;
  float* rows =
      OfThread<NodeRowScratch>().tile.Need(static_cast<std::size_t>(count * kCoordinates));
  HWY_ALIGN float mean[kCoordinates] = {};
  for (std::int64_t i = 0; i < count; ++i) {
    const float* row = coordinates + order[static_cast<std::size_t>(i * step)] * kCoordinates;
    std::copy_n(row, kCoordinates, rows + i * kCoordinates);
    add(1.0F, row, mean);
  }
  for (float& x : mean) x /= static_cast<float>(count);
  float farthest = -1.0F;
  std::fill_n(direction, kCoordinates, 0.0F);
  for (std::int64_t i = 0; i < count; ++i) {
    float* row = rows + i * kCoordinates;
    add(-1.0F, mean, row);
    const float distance = dot(row, row);
    if (!(distance > farthest)) continue;
    farthest = distance;
    std::copy_n(row, kCoordinates, direction);
  }
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    HWY_ALIGN float next[kCoordinates] = {};
    for (std::int64_t i = 0; i < count; ++i) {
      add(dot(direction, rows + i * kCoordinates), rows + i * kCoordinates, next);
    }
    const float norm = std::sqrt(dot(next, next));
    if (!(norm > 0.0F && norm < std::numeric_limits<float>::infinity())) {
      std::fill_n(direction, kCoordinates, 0.0F);
      return;
    }
    for (std::int64_t c = 0; c < kCoordinates; ++c) direction[c] = next[c] / norm;
  }
}

/// Spreads around the node's means, which must be there: a child's own and its mean's distance.
HWY_INLINE void SummarizeSpreads(const NodesView& nodes, std::int64_t id, const float* coordinates,
                                 const NodeStatistics& to) {
  const FloatTag df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  const Node& node = nodes.nodes[static_cast<std::size_t>(id)];
  const float inverse = 1.0F / static_cast<float>(node.end - node.begin);
  const auto spread = [&](auto d, const float* of_keys, const float* of_nodes, const float* own,
                          std::int64_t width, std::int64_t c) HWY_ATTR {
    auto sum = hn::Zero(d);
    const auto centre = hn::LoadU(d, of_nodes + id * width + c);
    if (node.child_count == 0) {
      for (std::int64_t j = node.begin; j < node.end; ++j) {
        const auto x = hn::Sub(hn::LoadU(d, of_keys + j * width + c), centre);
        sum = hn::MulAdd(x, x, sum);
      }
    } else {
      for (std::int64_t k = node.first_child; k < node.first_child + node.child_count; ++k) {
        const Node& child = nodes.nodes[static_cast<std::size_t>(k)];
        const auto x = hn::Sub(hn::LoadU(d, of_nodes + k * width + c), centre);
        const auto inner = own != nullptr ? hn::LoadU(d, own + k * width + c) : hn::Zero(d);
        sum = hn::MulAdd(hn::Set(d, static_cast<float>(child.end - child.begin)),
                         hn::MulAdd(x, x, inner), sum);
      }
    }
    return hn::Mul(sum, hn::Set(d, inverse));
  };
  for (std::int64_t c = 0; c < kCoordinates; c += lanes) {
    hn::StoreU(spread(df, coordinates, to.mean_coordinates, to.variances, kCoordinates, c), df,
               to.variances + id * kCoordinates + c);
  }
  float value_spread = 0.0F;
  ForLanes(nodes.value_depth, [&](auto d, std::int64_t c) HWY_ATTR {
    value_spread += hn::GetLane(
        hn::SumOfLanes(d, spread(d, nodes.values, to.mean_values, nullptr, nodes.value_depth, c)));
  });
  for (std::int64_t k = node.first_child; k < node.first_child + node.child_count; ++k) {
    const Node& child = nodes.nodes[static_cast<std::size_t>(k)];
    value_spread += inverse * static_cast<float>(child.end - child.begin) * to.value_spreads[k];
  }
  to.value_spreads[id] = value_spread;
}

void SummarizeNodeImpl(const NodesView& nodes, std::int64_t id, const float* coordinates,
                       const NodeStatistics& to) {
  const Node& node = nodes.nodes[static_cast<std::size_t>(id)];
  const auto n = static_cast<float>(node.end - node.begin);
  const float inverse = 1.0F / n;
  to.log_counts[id] = std::log(n);
  // Of columns c to c + lanes: the mean over a leaf's rows, or over children by their counts.
  const auto mean = [&](auto d, const float* of_keys, const float* of_nodes, std::int64_t width,
                        std::int64_t c) HWY_ATTR {
    auto sum = hn::Zero(d);
    if (node.child_count == 0) {
      for (std::int64_t j = node.begin; j < node.end; ++j) {
        sum = hn::Add(sum, hn::LoadU(d, of_keys + j * width + c));
      }
    } else {
      for (std::int64_t k = node.first_child; k < node.first_child + node.child_count; ++k) {
        const Node& child = nodes.nodes[static_cast<std::size_t>(k)];
        sum = hn::MulAdd(hn::Set(d, static_cast<float>(child.end - child.begin)),
                         hn::LoadU(d, of_nodes + k * width + c), sum);
      }
    }
    return hn::Mul(sum, hn::Set(d, inverse));
  };
  ForLanes(nodes.depth, [&](auto d, std::int64_t c) HWY_ATTR {
    hn::StoreU(mean(d, nodes.keys, to.mean_keys, nodes.depth, c), d,
               to.mean_keys + id * nodes.depth + c);
  });
  ForLanes(nodes.value_depth, [&](auto d, std::int64_t c) HWY_ATTR {
    hn::StoreU(mean(d, nodes.values, to.mean_values, nodes.value_depth, c), d,
               to.mean_values + id * nodes.value_depth + c);
  });
  const FloatTag df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  for (std::int64_t c = 0; c < kCoordinates; c += lanes) {
    hn::StoreU(mean(df, coordinates, to.mean_coordinates, kCoordinates, c), df,
               to.mean_coordinates + id * kCoordinates + c);
  }
  SummarizeSpreads(nodes, id, coordinates, to);
}

void SplitVariancesImpl(const NodesView& nodes, std::int64_t id, const float* coordinates,
                        const float* direction, const NodeStatistics& to) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const Node& node = nodes.nodes[static_cast<std::size_t>(id)];
  const float* mean = to.mean_coordinates + id * kCoordinates;
  float squares = 0.0F;
  for (std::int64_t j = node.begin; j < node.end; ++j) {
    const float* row = coordinates + j * kCoordinates;
    auto sum = hn::Zero(d);
    for (std::int64_t c = 0; c < kCoordinates; c += lanes) {
      const auto x = hn::Sub(hn::LoadU(d, row + c), hn::LoadU(d, mean + c));
      sum = hn::MulAdd(x, hn::LoadU(d, direction + c), sum);
    }
    const float along = hn::GetLane(hn::SumOfLanes(d, sum));
    squares += along * along;
  }
  const float own = squares / static_cast<float>(node.end - node.begin);
  const auto deviation = hn::Set(d, std::sqrt(own));
  auto trace = hn::Zero(d);
  for (std::int64_t c = 0; c < kCoordinates; c += lanes) {
    const std::int64_t at = id * kCoordinates + c;
    const auto axis = hn::Mul(deviation, hn::LoadU(d, direction + c));
    const auto variance = hn::LoadU(d, to.variances + at);
    trace = hn::Add(trace, variance);
    hn::StoreU(axis, d, to.axes + at);
    hn::StoreU(hn::Max(hn::NegMulAdd(axis, axis, variance), hn::Zero(d)), d, to.variances + at);
  }
  to.residuals[id] = std::max(0.0F, hn::GetLane(hn::SumOfLanes(d, trace)) - own);
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf::kernels {

HWY_EXPORT(GramImpl);
HWY_EXPORT(CoordinatesImpl);
HWY_EXPORT(LeadingDirectionImpl);
HWY_EXPORT(SummarizeNodeImpl);
HWY_EXPORT(SplitVariancesImpl);

void Gram(const float* rows, std::int64_t count, std::int64_t depth, float* gram) {
  HWY_DYNAMIC_DISPATCH(GramImpl)(rows, count, depth, gram);
}

void Coordinates(const Rows& rows, std::int64_t begin, std::int64_t count, std::int64_t depth,
                 const float* basis, float* target) {
  HWY_DYNAMIC_DISPATCH(CoordinatesImpl)(rows, begin, count, depth, basis, target);
}

void LeadingDirection(const float* coordinates, std::span<const std::int32_t> order,
                      float* direction) {
  HWY_DYNAMIC_DISPATCH(LeadingDirectionImpl)(coordinates, order, direction);
}

void SummarizeNode(const NodesView& nodes, std::int64_t id, const float* coordinates,
                   const NodeStatistics& to) {
  HWY_DYNAMIC_DISPATCH(SummarizeNodeImpl)(nodes, id, coordinates, to);
}

void SplitVariances(const NodesView& nodes, std::int64_t id, const float* coordinates,
                    const float* direction, const NodeStatistics& to) {
  HWY_DYNAMIC_DISPATCH(SplitVariancesImpl)(nodes, id, coordinates, direction, to);
}

}  // namespace smyrf::kernels
#endif
