// What `tree`'s planner does to rows: moments, coordinates, principal directions, node statistics.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/nodes.h"
#include "kernels/scratch.h"
#include "kernels/sort.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/node_rows.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/tile-inl.h"

#ifndef SMYRF_NODE_ROWS_ONCE_
#define SMYRF_NODE_ROWS_ONCE_
namespace smyrf::kernels {
namespace {

/// Coordinates that principal directions are looked for in, and rows they are computed from.
constexpr std::int64_t kSplitCoordinates = 16;
constexpr std::int64_t kSplitRows = 128;
constexpr std::int64_t kRowTile = 128;

struct NodeRowScratch {
  Buffer converted, tile;
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

void GatherRowsImpl(const Rows& rows, std::int64_t begin, std::int64_t count, std::int64_t depth,
                    float* target) {
  for (std::int64_t i = 0; i < count; ++i) {
    LoadRow(rows.Row(begin + i), rows.dtype, depth, target + i * depth);
  }
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

using SplitTag = hn::CappedTag<float, kSplitCoordinates>;
inline constexpr int kSplitVectors = static_cast<int>(kSplitCoordinates / hn::MaxLanes(SplitTag()));

HWY_INLINE float Dot(const float* a, const float* b) {
  const SplitTag d;
  auto sum = hn::Zero(d);
  SMYRF_UNROLL
  for (int c = 0; c < kSplitVectors; ++c) {
    const std::size_t at = static_cast<std::size_t>(c) * hn::Lanes(d);
    sum = hn::MulAdd(hn::LoadU(d, a + at), hn::LoadU(d, b + at), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

HWY_INLINE float Distance(const float* a, const float* b) {
  const SplitTag d;
  auto sum = hn::Zero(d);
  SMYRF_UNROLL
  for (int c = 0; c < kSplitVectors; ++c) {
    const std::size_t at = static_cast<std::size_t>(c) * hn::Lanes(d);
    const auto x = hn::Sub(hn::LoadU(d, a + at), hn::LoadU(d, b + at));
    sum = hn::MulAdd(x, x, sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

/// y += a x over the leading coordinates.
HWY_INLINE void Add(float a, const float* x, float* y) {
  const SplitTag d;
  const auto factor = hn::Set(d, a);
  SMYRF_UNROLL
  for (int c = 0; c < kSplitVectors; ++c) {
    const std::size_t at = static_cast<std::size_t>(c) * hn::Lanes(d);
    hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, x + at), hn::LoadU(d, y + at)), d, y + at);
  }
}

void PrincipalKeysImpl(const float* coordinates, std::span<const std::int32_t> order,
                       std::uint64_t* keys) {
  const auto count = static_cast<std::int64_t>(order.size());
  const auto row = [&](std::int64_t i) {
    return coordinates + order[static_cast<std::size_t>(i)] * kCoordinates;
  };
  const std::int64_t step = (count + kSplitRows - 1) / kSplitRows;
  HWY_ALIGN float mean[kSplitCoordinates] = {};
  std::int64_t sampled = 0;
  for (std::int64_t i = 0; i < count; i += step, ++sampled) Add(1.0F, row(i), mean);
  for (float& x : mean) x /= static_cast<float>(sampled);
  // Start from the row that lies farthest from the mean: never orthogonal to everything.
  HWY_ALIGN float direction[kSplitCoordinates] = {};
  float farthest = -1.0F;
  std::int64_t start = 0;
  for (std::int64_t i = 0; i < count; i += step) {
    const float distance = Distance(row(i), mean);
    if (distance > farthest) {
      farthest = distance;
      start = i;
    }
  }
  Add(1.0F, row(start), direction);
  Add(-1.0F, mean, direction);
  for (int iteration = 0; iteration < 2; ++iteration) {
    HWY_ALIGN float next[kSplitCoordinates] = {};
    const float offset = Dot(direction, mean);
    float total = 0.0F;
    for (std::int64_t i = 0; i < count; i += step) {
      const float along = Dot(direction, row(i)) - offset;
      total += along;
      Add(along, row(i), next);
    }
    Add(-total, mean, next);
    const float norm = std::sqrt(Dot(next, next));
    if (!(norm > 0.0F)) break;  // all rows agree: their order decides
    for (std::int64_t c = 0; c < kSplitCoordinates; ++c) direction[c] = next[c] / norm;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    keys[i] = std::uint64_t{OrderedBits(Dot(direction, row(i)))} << 32 |
              static_cast<std::uint32_t>(order[static_cast<std::size_t>(i)]);
  }
}

/// The leading component of the keys' coordinates, by power iterations over a leaf's rows, or over
/// its children's means and axes; variances and residual keep what it leaves.
void LeadingAxis(const NodesView& nodes, const Node& node, const float* coordinates,
                 const NodeStatistics& to, std::int64_t id) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  constexpr std::int64_t kMost = 64;
  HWY_ALIGN float rows[kMost * kCoordinates];  // their Gram matrix is the covariance
  std::int64_t count = 0;
  const float* mean = to.mean_coordinates + id * kCoordinates;
  const float n = static_cast<float>(node.end - node.begin);
  const auto add = [&](const float* row, const float* minus, float factor) HWY_ATTR {
    for (std::int64_t c = 0; c < kCoordinates; c += lanes) {
      auto x = hn::LoadU(d, row + c);
      if (minus != nullptr) x = hn::Sub(x, hn::LoadU(d, minus + c));
      hn::StoreU(hn::Mul(x, hn::Set(d, factor)), d, rows + count * kCoordinates + c);
    }
    ++count;
  };
  if (node.child_count == 0) {
    for (std::int64_t j = node.begin; j < std::min<std::int64_t>(node.end, node.begin + kMost);
         ++j) {
      add(coordinates + j * kCoordinates, mean, std::sqrt(1.0F / n));
    }
  } else {
    for (std::int64_t k = node.first_child; k < node.first_child + node.child_count; ++k) {
      const Node& child = nodes.nodes[static_cast<std::size_t>(k)];
      const float weight = std::sqrt(static_cast<float>(child.end - child.begin) / n);
      add(to.mean_coordinates + k * kCoordinates, mean, weight);
      add(to.axes + k * kCoordinates, nullptr, weight);
    }
  }
  const auto dot = [&](const float* a, const float* b) HWY_ATTR {
    auto sum = hn::Zero(d);
    for (std::int64_t c = 0; c < kCoordinates; c += lanes) {
      sum = hn::MulAdd(hn::LoadU(d, a + c), hn::LoadU(d, b + c), sum);
    }
    return hn::GetLane(hn::SumOfLanes(d, sum));
  };
  float* axis = to.axes + id * kCoordinates;
  std::fill_n(axis, kCoordinates, 0.0F);  // where every norm is NaN
  float longest = -1.0F;
  for (std::int64_t j = 0; j < count; ++j) {
    const float norm = dot(rows + j * kCoordinates, rows + j * kCoordinates);
    if (norm > longest) {
      longest = norm;
      std::copy_n(rows + j * kCoordinates, kCoordinates, axis);
    }
  }
  float factor = 0.0F;  // deviation along the direction, over its norm
  for (int iteration = 0; iteration < 3; ++iteration) {
    HWY_ALIGN float next[kCoordinates] = {};
    const float norm = std::sqrt(dot(axis, axis));
    if (!(norm > 0.0F)) break;
    float squares = 0.0F;
    for (std::int64_t j = 0; j < count; ++j) {
      const float along = dot(axis, rows + j * kCoordinates) / norm;
      squares += along * along;
      for (std::int64_t c = 0; c < kCoordinates; c += lanes) {
        hn::StoreU(hn::MulAdd(hn::Set(d, along), hn::LoadU(d, rows + j * kCoordinates + c),
                              hn::LoadU(d, next + c)),
                   d, next + c);
      }
    }
    if (iteration == 2) {
      factor = std::sqrt(squares) / norm;
      break;
    }
    std::copy_n(next, kCoordinates, axis);
  }
  float* variances = to.variances + id * kCoordinates;
  float residual = 0.0F;
  for (std::int64_t c = 0; c < kCoordinates; ++c) {
    axis[c] *= factor;
    variances[c] = std::max(0.0F, variances[c] - axis[c] * axis[c]);
    residual += variances[c];
  }
  to.residuals[id] = residual;
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

  // Spreads around the mean: a child's own and its mean's distance.
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
        auto inner = hn::Zero(d);
        if (own != nullptr) {
          const auto axis = hn::LoadU(d, to.axes + k * width + c);
          inner = hn::MulAdd(axis, axis, hn::LoadU(d, own + k * width + c));
        }
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
  LeadingAxis(nodes, node, coordinates, to, id);
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

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf::kernels {

HWY_EXPORT(GatherRowsImpl);
HWY_EXPORT(GramImpl);
HWY_EXPORT(CoordinatesImpl);
HWY_EXPORT(PrincipalKeysImpl);
HWY_EXPORT(SummarizeNodeImpl);

void GatherRows(const Rows& rows, std::int64_t begin, std::int64_t count, std::int64_t depth,
                float* target) {
  HWY_DYNAMIC_DISPATCH(GatherRowsImpl)(rows, begin, count, depth, target);
}

void Gram(const float* rows, std::int64_t count, std::int64_t depth, float* gram) {
  HWY_DYNAMIC_DISPATCH(GramImpl)(rows, count, depth, gram);
}

void Coordinates(const Rows& rows, std::int64_t begin, std::int64_t count, std::int64_t depth,
                 const float* basis, float* target) {
  HWY_DYNAMIC_DISPATCH(CoordinatesImpl)(rows, begin, count, depth, basis, target);
}

void PrincipalKeys(const float* coordinates, std::span<const std::int32_t> order,
                   std::uint64_t* keys) {
  HWY_DYNAMIC_DISPATCH(PrincipalKeysImpl)(coordinates, order, keys);
}

void SummarizeNode(const NodesView& nodes, std::int64_t id, const float* coordinates,
                   const NodeStatistics& to) {
  HWY_DYNAMIC_DISPATCH(SummarizeNodeImpl)(nodes, id, coordinates, to);
}

}  // namespace smyrf::kernels
#endif
