// The structure of what will be computed. A method's planner decides, its executor carries out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "smyrf/export.h"
#include "smyrf/options.h"

namespace smyrf {

/// Keys [begin, end) of a key order, evaluated exactly.
struct KeyRange {
  std::int32_t begin = 0;
  std::int32_t end = 0;
};

/// Queries [begin, end) of a query order and the key ranges that they all see.
struct QueryBlock {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  std::uint32_t first_range = 0;  ///< among the head's
  std::uint32_t last_range = 0;   ///< one past the last
  std::uint32_t first_node = 0;   ///< nodes that stand for all their keys, among the head's
  std::uint32_t last_node = 0;
};

/// A run of keys [begin, end) of a forest's order that one summary can stand for.
struct Node {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  std::int32_t first_child = 0;  ///< among the forest's nodes
  std::int32_t child_count = 0;  ///< 0: a leaf
};

/// Keys of consecutive positions, with trees of their own. Nodes lie breadth first within it, so
/// that a segment behind it renumbers nothing.
struct Segment {
  std::int32_t first_key = 0;  ///< the position where it begins
  std::int32_t last_key = 0;   ///< one past its last position
  std::int32_t begin = 0;      ///< where its valid keys lie in the forest's order
  std::int32_t end = 0;
  std::int32_t sinks = 0;       ///< the first of these: always exact and under no node
  std::int32_t first_node = 0;  ///< its nodes among the forest's
  std::int32_t last_node = 0;
  std::int32_t roots = 0;  ///< the first of its nodes, which cut its keys behind the sinks
};

/// What a plan was made for, and by which dials. A dial that the method does not have is 0 or
/// empty.
struct PlanInfo {
  Method method = Method::kDense;  ///< never kAuto
  std::string reason;              ///< why this method
  std::int64_t batch = 0;
  std::int64_t query_heads = 0;
  std::int64_t key_heads = 0;
  std::int64_t queries = 0;  ///< Nq
  std::int64_t keys = 0;     ///< Nk
  std::int64_t depth = 0;    ///< D
  bool is_causal = false;
  bool has_attn_mask = false;  ///< the call must pass it: plans hold no mask
  std::optional<Window> window{};
  std::optional<Positions> positions{};
  std::int64_t n_hashes = 0;
  std::int64_t cluster_size = 0;
  double tolerance = 0.0;
  Precision precision = Precision::kFloat32;
  double precision_error = 0.0;  ///< with kAuto: what narrow products may be expected to err
  std::optional<double> max_density{};
  /// Batch entries with fewer valid queries or keys are done as dense: where kAuto chose.
  std::int64_t dense_below = 0;
  std::optional<double> scale{};  ///< that the plan was made for; none: it serves any
  std::uint64_t seed = 0;

  /// Rounds of hashing; 1 for methods that have none.
  std::int64_t rounds() const { return n_hashes > 0 ? n_hashes : 1; }
};

/// One round of one (batch, query head), as long as its plan lives.
///
/// A head has blocks unless it is `dense` (in each round but the first), `non_finite`, or has no
/// valid query or no valid key. Blocks cut query_order, which holds every valid query once, from
/// its begin to its end. Of the valid keys, `lsh` puts each into one block: the ranges of the
/// blocks cut key_order. In `tree` every block evaluates each key once, in a range or under a node.
/// A call refuses a plan that breaks this.
struct HeadView {
  std::span<const std::int32_t> query_order;  ///< original indices of the valid queries
  /// Original indices of the valid keys; empty where a forest has their order.
  std::span<const std::int32_t> key_order;
  std::span<const QueryBlock> blocks;
  std::span<const KeyRange> ranges;
  std::span<const std::int32_t> nodes;  ///< of the key head's forest, block after block
  /// Done as dense attention: a single cluster, few valid rows, dense is cheaper, no threshold
  /// meets the tolerance, or means overflow.
  bool dense = false;
  /// A valid query or key was NaN or infinite when the plan was made: output is NaN, whatever rows
  /// a later call brings.
  bool non_finite = false;
  /// The relative error that calibration expects of out, and RMS of lse in nats; 0 without one.
  double expected_error = 0.0;
  double expected_lse_error = 0.0;
  double expected_work = 1.0;  ///< time of the blocks that calibration expects, over dense
};

/// The keys of one (batch, key head) as `tree` sees them, as long as its plan lives: segments, one
/// after the other by position. `key_order` and `nodes` hold those of each segment in this order; a
/// parent's children cut its keys and lie side by side.
struct KeyForestView {
  std::span<const std::int32_t> key_order;  ///< original indices of the valid keys
  std::span<const Segment> segments;
  std::span<const Node> nodes;
  /// (D, C), C leading coordinates: the common basis, so that (q query_basis) (k key_basis)^T is
  /// q k^T up to what the leading coordinates leave out. Constants under differentiation.
  std::span<const float> query_basis;
  std::span<const float> key_basis;
  // Where the variance of a node's keys lies; constants as the basis is.
  std::span<const float> directions;  ///< (nodes, C): the leading one, of length 1 or 0
  /// (roots of all segments, C): parts of what the directions leave, those of all nodes under the
  /// root.
  std::span<const float> profiles;
};

struct PlanData;

/// Made by `plan(...)`, carried out by `attention(..., &plan)`. Holds indices, no rows of k or v.
/// It never changes, so copies share it and threads may use it at the same time. Size: O(1) plus
/// the padding masks for `dense`; 4 (Nq + Nk) bytes a round and query head for `lsh`.
class Plan {
 public:
  SMYRF_API Plan();  ///< of nothing: no call takes it

  SMYRF_API const PlanInfo& info() const;
  /// Round, batch entry and query head must be in range, and the method one that plans heads: not
  /// `dense`, whose ranges are implicit.
  SMYRF_API HeadView head(std::int64_t round, std::int64_t batch_index,
                          std::int64_t query_head) const;
  /// The method must be one of has_forests().
  SMYRF_API KeyForestView forest(std::int64_t batch_index, std::int64_t key_head) const;
  /// Whether `head` may be asked for.
  SMYRF_API bool has_heads() const;
  SMYRF_API bool has_forests() const;
  /// Original indices of the valid rows of a batch entry, ascending; none: all rows are valid.
  SMYRF_API std::optional<std::span<const std::int32_t>> valid_queries(
      std::int64_t batch_index) const;
  SMYRF_API std::optional<std::span<const std::int32_t>> valid_keys(std::int64_t batch_index) const;
  /// Evaluated pairs over allowed pairs of one head; 1 where nothing is allowed.
  SMYRF_API double density(std::int64_t batch_index, std::int64_t query_head) const;

  /// The plan as bytes in the machine's byte order, with a version and a checksum.
  SMYRF_API std::string to_bytes() const;
  /// Throws Error for bytes of another version, for damaged ones, and for a plan that breaks what
  /// HeadView and KeyForestView say. Cost: one look at each number.
  SMYRF_API static Plan from_bytes(std::string_view bytes);
  /// to_bytes into a file, which appears whole or not at all. Throws Error with the system's reason
  /// where it can't be written or read.
  SMYRF_API void save(const std::string& path) const;
  SMYRF_API static Plan load(const std::string& path);

 private:
  friend struct PlanAccess;
  std::shared_ptr<const PlanData> data_;
};

}  // namespace smyrf
