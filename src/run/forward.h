// The CPU executor: carries out a plan and decides nothing.
#pragma once

#include <cstdint>
#include <functional>

#include "call/check.h"
#include "smyrf/attention.h"

namespace smyrf {

/// The plan of the rounds from `first_round` on, as many as it holds; valid until the next call.
using PlanOfRounds = std::function<const Plan&(std::int64_t first_round)>;

/// Writes out and lse after `rounds` rounds. Extra memory: one tile a thread, partial results where
/// few queries meet many keys, and for several rounds those of all queries, as far as the outputs
/// do not hold them.
void ExecuteForward(const Problem& problem, std::int64_t rounds, const PlanOfRounds& plan_of_rounds,
                    const Outputs& outputs);

}  // namespace smyrf
