// Whether a plan holds together: executors trust every index of it, write the rows of its blocks
// from several threads at once, and leave rows unwritten that it forgets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "run/plan_parts.h"

namespace smyrf {

/// Throws "plan: its PART are damaged: RULE" unless the rule holds.
void Require(bool holds, const char* part, const char* rule);

inline bool IsPart(std::int64_t begin, std::int64_t end, std::int64_t size) {
  return begin >= 0 && begin <= end && end <= size;
}

/// Whether lists hold each valid row of one batch entry exactly once. Costs one look a row. Memory:
/// 8 bytes a row, but at most 64 a valid one: where these are few, as a file may claim of rows that
/// nobody has, each look searches for it among them.
class Permutations {
 public:
  /// `valid`: none where all of `rows` rows are.
  Permutations(std::int64_t rows, ValidRows valid)
      : rows_(rows), valid_(valid), few_(valid && std::ssize(*valid) < rows / 8) {}

  std::int64_t count() const { return valid_ ? std::ssize(*valid_) : rows_; }
  bool Holds(std::span<const std::int32_t> order);

 private:
  void MarkValid();
  /// Of a row in last_list_; past its end for what is no row, or not among few valid ones.
  std::size_t PlaceOf(std::int32_t row) const;

  std::int64_t rows_;
  ValidRows valid_;
  bool few_;
  std::vector<std::int64_t> last_list_;  ///< that held the row; 0: not valid
  std::int64_t list_ = 1;
};

/// Throws unless the plan has so many heads and trees.
void RequireCounts(const PlanView& plan, std::int64_t heads, std::int64_t trees);

/// What is checked of one batch entry: Permutations of its valid queries and keys.
struct EntryRows {
  Permutations queries, keys;
  bool empty() const { return queries.count() == 0 || keys.count() == 0; }
};

/// body(batch entry, rows) for each.
void ForEachEntry(const PlanView& plan,
                  const std::function<void(std::int64_t batch, EntryRows& rows)>& body);

/// Throws unless the head has blocks where it is to have some (and none where `is_done` by other
/// means), and these cut the query order from front to back, with lists inside the head's.
void CheckBlocks(const HeadView& head, bool is_done, EntryRows& rows);

/// All valid keys of a batch entry, ascending: what the reference evaluates of a dense head.
std::vector<std::int64_t> AllKeys(const Problem& problem, std::int64_t batch);

/// Pairs of the blocks of all rounds of a head, of keys and of summaries, over the pairs of valid
/// queries and keys; 1 where there are none of these.
double DensityOfBlocks(const PlanView& plan, std::int64_t batch, std::int64_t head);

}  // namespace smyrf
