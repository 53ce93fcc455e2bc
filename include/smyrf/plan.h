// The structure of what will be computed. A planner decides, an executor carries out.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "smyrf/options.h"

namespace smyrf {

/// Keys [begin, end) of a key order, evaluated exactly.
struct KeyRange {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  /// Some (query, key) of the range may be masked: the executor asks the mask for each pair.
  bool partial = false;
};

/// Queries [begin, end) of a query order and the key ranges that they all see.
struct QueryBlock {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  std::uint32_t first_range = 0;
  std::uint32_t last_range = 0;  ///< one past the last
  std::uint32_t first_node = 0;  ///< `tree`: nodes that stand for all their keys
  std::uint32_t last_node = 0;
};

/// A run of keys [begin, end) of a KeyTree's order that one summary can stand for.
struct Node {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  std::int32_t first_child = 0;
  std::int32_t child_count = 0;  ///< 0: a leaf
};

/// The keys of one (batch, key head) as `tree` sees them. Roots cut the keys behind the sinks from
/// the first to the last, and children the keys of their parent.
struct KeyTree {
  std::vector<std::int32_t> key_order;  ///< original indices of the valid keys, sinks first
  std::int32_t sinks = 0;               ///< keys that are always exact and under no node
  std::vector<Node> nodes;              ///< the roots first; children of a node side by side
  std::int32_t roots = 0;
  /// (D, kCoordinates): the common basis, so that (q query_basis) (k key_basis)^T = q k^T up to
  /// what the leading coordinates leave out. Constants under differentiation.
  std::vector<float> query_basis;
  std::vector<float> key_basis;
  // Where the variance of a node's keys lies; constants as the basis is.
  std::vector<float> directions;  ///< (nodes, kCoordinates): the leading one, of length 1 or 0
  /// (roots, kCoordinates): parts of what the directions leave, those of all nodes under the root.
  std::vector<float> profiles;
};

/// One round of one (batch, query head).
///
/// A head has blocks unless it is `dense` (`tree`, and rounds of `lsh` after the first) or
/// `non_finite`, or has no valid query or no valid key. Blocks cut query_order, which holds every
/// valid query once, from its begin to its end. Of the valid keys, `lsh` puts each into one block:
/// the ranges of the blocks cut key_order. In `tree` every block evaluates each key once, in a
/// range or under a node. A call refuses a plan that breaks this.
struct HeadPlan {
  std::vector<std::int32_t> query_order;  ///< original indices of the valid queries
  std::vector<std::int32_t> key_order;    ///< of the valid keys; `tree`: empty, the KeyTree has it
  std::vector<QueryBlock> blocks;
  std::vector<KeyRange> ranges;
  std::vector<std::int32_t> nodes;  ///< `tree`: of the key head's KeyTree, block after block
  /// The same as dense attention: `lsh` with a single cluster; `tree` with few valid rows, where
  /// dense is cheaper, no threshold meets the tolerance or means overflow.
  bool dense = false;
  bool non_finite = false;  ///< a valid query or key is NaN or infinite: output is NaN
  /// `tree`: the relative error that calibration expects of out, and RMS of lse in nats.
  double expected_error = 0.0;
  double expected_lse_error = 0.0;
  double expected_work = 1.0;  ///< `tree`: time of the blocks over dense attention's
};

/// Made by `plan(...)`, carried out by `attention(..., &plan)`. Holds indices, no rows of k or v.
/// Size: O(1) plus the padding masks for `dense`; 4 (Nq + Nk) bytes a round and query head for
/// `lsh`.
struct Plan {
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
  /// Original indices of the valid rows, ascending, a list a batch entry; no lists: all are valid.
  std::vector<std::vector<std::int32_t>> valid_queries;
  std::vector<std::vector<std::int32_t>> valid_keys;

  // `lsh` only.
  std::int64_t n_hashes = 0;
  std::int64_t cluster_size = 0;
  // `tree` only.
  double tolerance = 0.0;
  std::optional<double> max_density{};
  /// Batch entries with fewer valid queries or keys are done as dense: kAutoRows or kAutoRowsShared
  /// of kAuto.
  std::int64_t dense_below = 0;
  double scale = 0.0;              ///< that the plan was made for
  std::vector<KeyTree> key_trees;  ///< (batch, key head)
  // `lsh` and `tree`.
  std::uint64_t seed = 0;
  /// (round, batch, query head). Dense ranges are implicit: empty for `dense`.
  std::vector<HeadPlan> heads;

  const KeyTree& key_tree(std::int64_t batch_index, std::int64_t key_head) const {
    return key_trees[static_cast<std::size_t>(batch_index * key_heads + key_head)];
  }
  std::int64_t rounds() const { return method == Method::kLsh ? n_hashes : 1; }
  const HeadPlan& head(std::int64_t round, std::int64_t batch_index,
                       std::int64_t head_index) const {
    return heads[static_cast<std::size_t>((round * batch + batch_index) * query_heads +
                                          head_index)];
  }
  /// Evaluated pairs over allowed pairs of one head; 1 where nothing is allowed.
  double density(std::int64_t batch_index, std::int64_t head_index) const;
};

}  // namespace smyrf
