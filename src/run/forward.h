// The CPU executor of exact blocks: carries out a plan, or every allowed pair, and decides nothing.
#pragma once

#include <cstdint>
#include <functional>

#include "run/plan_parts.h"
#include "run/problem.h"
#include "smyrf/attention.h"

namespace smyrf {

/// (batch, query head)s [first, last).
struct HeadRange {
  std::int64_t first = 0;
  std::int64_t last = 0;
};

inline HeadRange AllHeads(const Problem& problem) {
  return {0, problem.batch * problem.query_heads};
}

/// The plan of the rounds from `first_round` on, as many as it holds; valid until the next call.
using PlanOfRounds = std::function<const PlanView&(std::int64_t first_round)>;

/// Writes out and lse of all heads after `rounds` rounds, and adds to the heads' seconds in the
/// statistics. Extra memory: one tile a thread, and for several rounds partial results of all
/// queries, as far as the outputs do not hold them.
void ForwardRounds(const Problem& problem, std::int64_t rounds, const PlanOfRounds& plan_of_rounds,
                   const Outputs& outputs);

/// The same for every allowed pair of some heads: dense attention. Extra memory: one tile a thread,
/// and partial results where few queries meet many keys.
void ForwardDense(const Problem& problem, const HeadRange& heads, const Run& run,
                  const Outputs& outputs);

}  // namespace smyrf
