// Which heads of a call have narrow products, and their rows as integers.
#pragma once

#include <cstdint>
#include <vector>

#include "base/workspace.h"
#include "run/forward.h"
#include "run/items.h"
#include "run/problem.h"
#include "simd/narrow.h"
#include "smyrf/statistics.h"

namespace smyrf {

/// (batch, query head)s whose every allowed pair is evaluated. A key head and its query heads have
/// one precision: the narrowest that the problem's narrowing allows all of them.
class NarrowHeads {
 public:
  NarrowHeads() = default;
  /// Measures and packs. Memory of a narrow key head: Nk (D + 2 Dv + 8) bytes with int8,
  /// Nk (2 D + 2 Dv + 8) with int16. The problem must outlive it.
  NarrowHeads(const Problem& problem, const HeadRange& range, const Run& run);

  /// AttendBlock, narrow where the head is.
  kernels::Partial Attend(const Item& item, const kernels::BlockTask& task) const;
  /// Precision and expected errors of (batch, query head) `head`.
  void Describe(std::int64_t head, Statistics::Head& to) const;

 private:
  /// One (batch, key head).
  struct Group {
    std::int64_t batch = 0;
    std::int64_t key_head = 0;
    std::int64_t first_head = 0;  ///< of the range, (batch, query head)s
    std::int64_t last_head = 0;
    std::int64_t queries = 0;  ///< valid ones
    std::int64_t keys = 0;
    Precision precision = Precision::kFloat32;
    std::vector<double> errors;  ///< of a logit, by head, where the precision is narrow
    kernels::Floats numbers, steps, offsets, values;
    kernels::NarrowKeys packed() const;
    std::int64_t stride = 0;
  };
  void FindGroups(const HeadRange& range);
  void Choose(const Run& run);
  void Pack(const Run& run);
  const Group* GroupOf(std::int64_t batch, std::int64_t head) const;

  const Problem* problem_ = nullptr;
  std::int64_t first_group_ = 0;  ///< (batch, key head) of the first
  std::vector<Group> groups_;     ///< none: all is float32
};

}  // namespace smyrf
