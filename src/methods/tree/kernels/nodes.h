// What `tree` works on: a key head's rows in tree order, its nodes' summaries, and blocks of
// queries as SIMD lanes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/workspace.h"
#include "simd/kernels.h"
#include "smyrf/plan.h"

namespace smyrf::kernels {

/// Queries a block of `tree`, which are the SIMD lanes.
inline constexpr std::int64_t kTreeRows = 16;
/// Leading coordinates in the common basis that nodes' variances are of; zero past D.
inline constexpr std::int64_t kCoordinates = 32;

/// `count` contiguous rows, uninitialised, of which the last too may be read to PaddedDepth floats.
inline Floats PaddedRows(std::int64_t count, std::int64_t depth) {
  return Floats(count * depth + PaddedDepth(depth) - depth);
}

/// A key head in its forest's order and its nodes; all float32 and contiguous. Keys, values
/// and means are PaddedRows.
struct NodesView {
  std::int64_t depth = 0;        ///< D
  std::int64_t value_depth = 0;  ///< Dv
  std::int64_t key_count = 0;    ///< rows of keys and values, segment after segment
  std::span<const Segment> segments;
  std::span<const Node> nodes;
  const float* keys = nullptr;            ///< (key_count, D)
  const float* values = nullptr;          ///< (key_count, Dv)
  const float* mean_keys = nullptr;       ///< (nodes, D)
  const float* mean_values = nullptr;     ///< (nodes, Dv)
  const float* axes = nullptr;            ///< (nodes, kCoordinates): deviation along the direction
  const float* residuals = nullptr;       ///< (nodes): variance that it leaves, all coordinates'
  const std::int32_t* root_of = nullptr;  ///< (nodes): whose profile its residual has
  const float* log_counts = nullptr;      ///< (nodes): ln n
  const float* value_spreads = nullptr;   ///< (nodes): mean |v - mean(v)|^2
  /// (Nk): where the key at each position lies in tree order; -1 where it is padded.
  std::span<const std::int32_t> ranks;
  std::int64_t own_offset = 0;  ///< from a query's index to that of the key at its position

  // Of the first segment, the only one that planners know.
  std::int64_t sinks() const { return segments[0].sinks; }
  std::int64_t roots() const { return segments[0].roots; }
};

/// Where each level of a segment's nodes begins, that of the roots first, and their end: children
/// lie behind their parents, levels side by side.
inline std::vector<std::int64_t> LevelBegins(std::span<const Node> nodes, const Segment& segment) {
  std::vector<std::int64_t> begins{segment.first_node};
  for (std::int64_t end = begins[0] + segment.roots; end > begins.back();) {
    std::int64_t next = end;
    for (std::int64_t id = begins.back(); id < end; ++id) {
      next += nodes[static_cast<std::size_t>(id)].child_count;
    }
    begins.push_back(end);
    end = next;
  }
  return begins;
}

/// At most kTreeRows queries, a lane each; lanes past `rows` are zero.
struct QueryLanes {
  std::int64_t rows = 0;
  const float* q = nullptr;  ///< (D, kTreeRows): times scale and log2(e)
  /// (kCoordinates, kTreeRows): coordinates times scale. A logit's variance over a node is their
  /// product with its axis, squared, and its residual times the energy of its root.
  const float* coordinates = nullptr;
  const float* energies = nullptr;          ///< (roots, kTreeRows): their squares by the profiles
  const float* const* queries = nullptr;    ///< (rows) of D, as they are
  const std::int32_t* positions = nullptr;  ///< (rows)
  float logit_scale = 0.0F;                 ///< scale times log2(e)
};

/// Queries at positions order[begin, end) of `rows`. basis: (D, kCoordinates); profiles: (roots,
/// kCoordinates). In memory of the calling thread, valid until its next call.
QueryLanes LoadLanes(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth,
                     double scale, const float* basis, std::span<const float> profiles);

/// Pseudo-logits of nodes `ids` in base 2, (ids, kTreeRows) each, count and variance included.
void NodeLogits(const NodesView& nodes, const QueryLanes& lanes, std::span<const std::int32_t> ids,
                float* logits);

/// One softmax over the summaries of `closed` and the keys of `ranges`. `closed_logits` as
/// NodeLogits gives them. Cost: kTreeRows (keys (D + Dv) + closed Dv) multiply-adds, Dv rounded up
/// to whole vectors. In memory of the calling thread, valid until its next call.
Partial AttendNodes(const NodesView& nodes, const QueryLanes& lanes,
                    std::span<const std::int32_t> closed, const float* closed_logits,
                    std::span<const KeyRange> ranges);

/// shares (count) += the softmax weights of every key, summed over the lanes' queries.
void AddShares(const Rows& keys, std::int64_t count, std::int64_t depth, const QueryLanes& lanes,
               float* shares);

/// gram (depth, depth) = sum over `count` rows of x x^T; rows contiguous.
void Gram(const float* rows, std::int64_t count, std::int64_t depth, float* gram);

/// target (count, kCoordinates) = rows [begin, begin + count) times basis (depth, kCoordinates).
void Coordinates(const Rows& rows, std::int64_t begin, std::int64_t count, std::int64_t depth,
                 const float* basis, float* target);

/// direction (kCoordinates) = the leading principal one of rows order[0, count) of coordinates (N,
/// kCoordinates), of length 1 (four power iterations on at most 128 of them); zero where they
/// agree.
void LeadingDirection(const float* coordinates, std::span<const std::int32_t> order,
                      float* direction);

/// Mutable parts of a NodesView; mean coordinates and variances only while they are made.
struct NodeStatistics {
  float* mean_keys = nullptr;
  float* mean_values = nullptr;
  float* mean_coordinates = nullptr;
  float* axes = nullptr;
  float* variances = nullptr;  ///< (nodes, kCoordinates): of coordinates, then what axes leave
  float* residuals = nullptr;
  float* log_counts = nullptr;
  float* value_spreads = nullptr;
};

/// Fills in one node, but for its axis: a leaf from its rows in tree order, a parent from its
/// children, whose counts weigh. `coordinates` (key_count, kCoordinates) in tree order.
void SummarizeNode(const NodesView& nodes, std::int64_t id, const float* coordinates,
                   const NodeStatistics& to);

/// A summarised node's axis, from the variance of its rows along `direction` (kCoordinates), which
/// leaves the variances. Parents are to be summarised before.
void SplitVariances(const NodesView& nodes, std::int64_t id, const float* coordinates,
                    const float* direction, const NodeStatistics& to);

}  // namespace smyrf::kernels
