// Plans of calls, and the rows that they must hold.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "smyrf/attention.h"
#include "testing/call.h"

namespace smyrf::testing {

inline Plan PlanOf(const Call& call) { return plan(call.arguments(), call.options); }

/// Valid queries or keys of a batch entry, ascending.
inline std::vector<std::int32_t> ValidRows(const Call& call, std::int64_t b, bool queries) {
  std::vector<std::int32_t> rows;
  for (std::int32_t i = 0; i < (queries ? call.shape.queries : call.shape.keys); ++i) {
    if (queries ? call.IsValidQuery(b, i) : call.IsValidKey(b, i)) rows.push_back(i);
  }
  return rows;
}

inline std::vector<std::int32_t> Sorted(std::vector<std::int32_t> rows) {
  std::sort(rows.begin(), rows.end());
  return rows;
}

}  // namespace smyrf::testing
