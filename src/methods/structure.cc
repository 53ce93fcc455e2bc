#include "methods/structure.h"

#include <algorithm>
#include <numeric>

#include "base/message.h"

namespace smyrf {

void Require(bool holds, const char* part, const char* rule) {
  if (holds) return;
  Fail(ErrorKind::kValue, "plan: its ", part, " are damaged: ", rule, "; make it with plan()");
}

bool Permutations::Holds(std::span<const std::int32_t> order) {
  if (std::ssize(order) != count()) return false;
  if (last_list_.empty()) MarkValid();
  for (const std::int32_t row : order) {
    const std::size_t at = PlaceOf(row);
    if (at >= last_list_.size() || last_list_[at] != list_) return false;
    last_list_[at] = list_ + 1;
  }
  ++list_;
  return true;
}

inline std::size_t Permutations::PlaceOf(std::int32_t row) const {
  // Of a negative one the conversion is too large.
  if (!few_) return static_cast<std::size_t>(row);
  const std::span<const std::int32_t> valid = valid_.value_or(std::span<const std::int32_t>());
  const auto found = std::lower_bound(valid.begin(), valid.end(), row);
  const bool is_valid = found != valid.end() && *found == row;
  return static_cast<std::size_t>((is_valid ? found : valid.end()) - valid.begin());
}

void Permutations::MarkValid() {
  const bool all = few_ || !valid_;
  last_list_.assign(static_cast<std::size_t>(few_ ? count() : rows_), all ? list_ : 0);
  if (all) return;
  for (const std::int32_t row : *valid_) last_list_[static_cast<std::size_t>(row)] = list_;
}

void RequireCounts(const PlanView& plan, std::int64_t heads, std::int64_t trees) {
  Require(static_cast<std::int64_t>(plan.head_count()) == heads, "heads",
          "their number does not fit method and sizes");
  Require(static_cast<std::int64_t>(plan.forest_count()) == trees, "key trees",
          "their number does not fit method and sizes");
}

void ForEachEntry(const PlanView& plan,
                  const std::function<void(std::int64_t batch, EntryRows& rows)>& body) {
  if (plan.head_count() + plan.forest_count() == 0) return;  // of however many entries
  for (std::int64_t b = 0; b < plan.info().batch; ++b) {
    EntryRows rows{{plan.info().queries, plan.valid_queries(b)},
                   {plan.info().keys, plan.valid_keys(b)}};
    body(b, rows);
  }
}

void CheckBlocks(const HeadView& head, bool is_done, EntryRows& rows) {
  Require(head.blocks.empty() == (is_done || rows.empty()), "blocks",
          "each query must be in one of them, but in none of a head without valid keys or one "
          "that is dense or non_finite");
  if (head.blocks.empty()) return;
  Require(rows.queries.Holds(head.query_order), "orders",
          "query_order must hold each valid query once");
  std::int32_t next = 0;
  for (const QueryBlock& block : head.blocks) {
    Require(block.begin == next && block.begin < block.end, "blocks",
            "each query must be in one of them");
    next = block.end;
    Require(IsPart(block.first_range, block.last_range, std::ssize(head.ranges)) &&
                IsPart(block.first_node, block.last_node, std::ssize(head.nodes)),
            "blocks", "a block's lists reach past those of the head");
  }
  Require(next == std::ssize(head.query_order), "blocks", "each query must be in one of them");
}

std::vector<std::int64_t> AllKeys(const Problem& problem, std::int64_t batch) {
  if (!problem.valid_keys.empty()) {
    const std::span<const std::int32_t> valid = ValidOf(problem.valid_keys, batch);
    return {valid.begin(), valid.end()};
  }
  std::vector<std::int64_t> keys(static_cast<std::size_t>(problem.keys));
  std::iota(keys.begin(), keys.end(), 0);
  return keys;
}

double DensityOfBlocks(const PlanView& plan, std::int64_t batch, std::int64_t head) {
  const PlanInfo& info = plan.info();
  const auto count = [](const ValidRows& valid, std::int64_t all) {
    return valid ? static_cast<double>(valid->size()) : static_cast<double>(all);
  };
  const double allowed =
      count(plan.valid_queries(batch), info.queries) * count(plan.valid_keys(batch), info.keys);
  double evaluated = 0.0;
  for (std::int64_t round = 0; round < info.rounds(); ++round) {
    const HeadView view = plan.head(round, batch, head);
    if (view.non_finite) return 0.0;  // nothing is evaluated: the output is NaN
    for (const QueryBlock& block : view.blocks) {
      evaluated += static_cast<double>(block.end - block.begin) *
                   static_cast<double>(block.last_node - block.first_node);
      for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
        evaluated += static_cast<double>(block.end - block.begin) *
                     static_cast<double>(view.ranges[r].end - view.ranges[r].begin);
      }
    }
  }
  return allowed > 0.0 ? evaluated / allowed : 1.0;
}

}  // namespace smyrf
