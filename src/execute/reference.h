// The float64 executor that all others are compared with: plain loops, no SIMD, no tiles.
#pragma once

#include "smyrf/plan.h"
#include "validate.h"

namespace smyrf {

/// out (B, Hq, Nq, Dv) and lse (B, Hq, Nq), contiguous; lse may be null.
void ExecuteReference(const Problem& problem, const Plan& plan, double* out, double* lse);

}  // namespace smyrf
