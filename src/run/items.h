// Kernel calls of `dense` and `lsh` plans: what forward and backward both carry out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "call/check.h"
#include "methods/dense/ranges.h"
#include "simd/kernels.h"
#include "smyrf/plan.h"

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

/// The kernel calls of one round of (batch, query head)s [first, last), each made when it is asked
/// for: a list of all would be as long as the queries. Memory: 8 bytes a head, or a block of `lsh`.
class Items {
 public:
  Items(const Problem& problem, const Plan& plan, std::int64_t round, std::int64_t first,
        std::int64_t last);
  std::int64_t size() const { return begins_.back(); }
  Item operator[](std::int64_t i) const;

 private:
  const HeadPlan& Head(std::int64_t head) const;

  const Problem& problem_;
  const Plan& plan_;
  std::int64_t round_;
  std::int64_t first_;
  std::vector<std::int64_t> begins_{0};     ///< items before each head, or block of `lsh`; all
  std::vector<std::int64_t> first_blocks_;  ///< `lsh`: of each head, among the blocks of all
};

/// An item as the kernels take it. Implicit ranges are cut to [first_key, last_key) of the key
/// order and live in `implicit`.
kernels::BlockTask TaskOf(const Problem& problem, const Plan& plan, const Item& item,
                          std::int64_t first_key, std::int64_t last_key, DenseRanges& implicit);

}  // namespace smyrf
