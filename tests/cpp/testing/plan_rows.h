// Plans of calls, and the rows that they must hold.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "smyrf/attention.h"
#include "testing/call.h"

namespace smyrf::testing {

inline PlanParts PlanOf(const Call& call) { return Unpack(plan(call.arguments(), call.options)); }

/// Pairs that a head evaluates over those that it may.
inline double DensityOf(const PlanParts& parts, std::int64_t b, std::int64_t h) {
  return Pack(PlanParts(parts)).density(b, h);
}

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
