// Kernel calls of exact blocks: what forward and backward both carry out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "run/dense_ranges.h"
#include "run/plan_parts.h"
#include "run/problem.h"
#include "simd/kernels.h"
#include "smyrf/plan.h"

namespace smyrf {

/// Queries [begin, end) of a (batch, query head) in its query order, at most kBlockRows.
struct Item {
  std::int64_t batch = 0;
  std::int64_t head = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  const QueryBlock* block = nullptr;  ///< of the plan; null: implicit dense ranges
  HeadView plan{};                    ///< where there is a block
};

/// The kernel calls of one round of (batch, query head)s [first, last), each made when it is asked
/// for: a list of all would be as long as the queries. Memory: 8 bytes a head, or a block of a
/// plan.
class Items {
 public:
  /// `plan`, where not null, must outlive it; null: every allowed pair.
  Items(const Problem& problem, const PlanView* plan, std::int64_t round, std::int64_t first,
        std::int64_t last);
  std::int64_t size() const { return begins_.back(); }
  Item operator[](std::int64_t i) const;

 private:
  HeadView Head(std::int64_t head) const;

  const Problem& problem_;
  const PlanView* plan_;
  std::int64_t round_;
  std::int64_t first_;
  std::vector<std::int64_t> begins_{0};     ///< items before each head, or block of the plan; all
  std::vector<std::int64_t> first_blocks_;  ///< of each head, among the blocks of all; with a plan
};

/// An item as the kernels take it. Implicit ranges are cut to [first_key, last_key) of the key
/// order and live in `implicit`.
kernels::BlockTask TaskOf(const Problem& problem, const Item& item, std::int64_t first_key,
                          std::int64_t last_key, DenseRanges& implicit);

}  // namespace smyrf
