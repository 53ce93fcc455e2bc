// Kernel calls of `dense` and `lsh` plans: what forward and backward both carry out.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "plan/dense.h"
#include "smyrf/plan.h"
#include "validate.h"

namespace smyrf {

/// Queries [begin, end) of a (batch, query head) in its query order, at most kBlockRows.
struct Item {
  std::int64_t batch = 0;
  std::int64_t head = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  const HeadPlan* plan = nullptr;     ///< null: implicit dense ranges
  const QueryBlock* block = nullptr;  ///< of the plan
};

/// Lists of Plan::valid_queries or valid_keys; an empty one stands for all rows.
using ValidLists = std::vector<std::vector<std::int32_t>>;
std::span<const std::int32_t> ValidOf(const ValidLists& lists, std::int64_t batch);
std::int64_t ValidCount(const ValidLists& lists, std::int64_t batch, std::int64_t all);

/// The kernel calls of one round of one head, appended to `items`.
void AddItems(const Problem& problem, const Plan& plan, std::int64_t round, std::int64_t batch,
              std::int64_t head, std::vector<Item>& items);

/// An item as the kernels take it. Implicit ranges are cut to [first_key, last_key) of the key
/// order and live in `implicit`.
kernels::BlockTask TaskOf(const Problem& problem, const Plan& plan, const Item& item,
                          std::int64_t first_key, std::int64_t last_key, DenseRanges& implicit);

}  // namespace smyrf
