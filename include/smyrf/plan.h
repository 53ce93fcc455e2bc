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
};

/// One round of one (batch, query head). Rows that are in no block give 0 and lse -inf.
struct HeadPlan {
  std::vector<std::int32_t> query_order;  ///< original indices of the valid queries
  std::vector<std::int32_t> key_order;    ///< original indices of the valid keys
  std::vector<QueryBlock> blocks;
  std::vector<KeyRange> ranges;
  bool dense = false;       ///< a single cluster: the same as dense attention
  bool non_finite = false;  ///< a valid query or key is NaN or infinite: output is NaN
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
  std::optional<Window> window{};
  /// Original indices of the valid rows, a list a batch entry; empty vectors: all rows are valid.
  std::vector<std::vector<std::int32_t>> valid_queries;
  std::vector<std::vector<std::int32_t>> valid_keys;

  // `lsh` only.
  std::int64_t n_hashes = 0;
  std::int64_t cluster_size = 0;
  std::uint64_t seed = 0;
  /// (round, batch, query head). Dense ranges are implicit: empty for `dense`.
  std::vector<HeadPlan> heads;

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
