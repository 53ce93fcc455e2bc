// The CPU executor: carries out a plan and decides nothing.
#pragma once

#include "smyrf/attention.h"
#include "validate.h"

namespace smyrf {

/// Writes out and lse. Extra memory: one tile a thread, partial results where few queries meet many
/// keys, and for several rounds a float32 copy of what the outputs do not hold themselves.
void ExecuteForward(const Problem& problem, const Plan& plan, const Outputs& outputs);

}  // namespace smyrf
