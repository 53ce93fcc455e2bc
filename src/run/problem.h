// A call that was found to be sound. Methods and executors take it and check nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/run.h"
#include "simd/dropout.h"
#include "simd/mask.h"
#include "smyrf/attention.h"

namespace smyrf {

/// Queries or keys of a call.
inline constexpr std::int64_t kMaxRows = std::numeric_limits<std::int32_t>::max();

/// Whether the first of so many queries or keys may stand there.
constexpr bool IsPosition(std::int64_t first, std::int64_t rows) {
  return first >= 0 && first <= kMaxRows - rows;
}

/// Queries or keys of all heads and batch entries: more than any memory holds, and few enough that
/// no count or offset overflows.
inline constexpr double kMaxAllRows = 0x1p40;

/// Original indices of the valid rows of each batch entry, ascending; no lists: all are valid.
using ValidLists = std::vector<std::vector<std::int32_t>>;

/// What of the products may be narrowed, and how much that may cost.
struct Narrowing {
  Precision precision = Precision::kFloat32;
  double tolerance = 0.0;  ///< with kAuto
};

struct Problem {
  TensorView query, key, value;
  std::int64_t batch = 0, query_heads = 0, key_heads = 0;
  std::int64_t queries = 0, keys = 0;       ///< Nq, Nk
  std::int64_t depth = 0, value_depth = 0;  ///< D, Dv; Dv is 0 where only a plan is made
  double scale = 1.0;
  Mask mask;
  ValidLists valid_queries, valid_keys;
  Dropout dropout;
  Narrowing narrowing;
  Run run;

  std::int64_t KeyHead(std::int64_t query_head) const {
    return query_head / (query_heads / key_heads);
  }
};

/// The list of a batch entry; empty where all rows are valid.
inline std::span<const std::int32_t> ValidOf(const ValidLists& lists, std::int64_t batch) {
  if (lists.empty()) return {};
  return lists[static_cast<std::size_t>(batch)];
}

inline std::int64_t ValidCount(const ValidLists& lists, std::int64_t batch, std::int64_t all) {
  return lists.empty() ? all : std::ssize(lists[static_cast<std::size_t>(batch)]);
}

/// body(position) for each valid row at positions [begin, end), ascending.
template <class Body>
void ForEachValid(const ValidLists& lists, std::int64_t batch, std::int64_t begin, std::int64_t end,
                  const Body& body) {
  if (lists.empty()) {
    for (std::int64_t i = begin; i < end; ++i) body(i);
    return;
  }
  const std::span<const std::int32_t> valid = ValidOf(lists, batch);
  for (auto at = std::lower_bound(valid.begin(), valid.end(), begin);
       at != valid.end() && *at < end; ++at) {
    body(std::int64_t{*at});
  }
}

}  // namespace smyrf
