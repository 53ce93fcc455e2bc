// The paper's planner: balanced clusters of an asymmetric hash (SMYRF, Daras et al. 2020).
#pragma once

#include "smyrf/plan.h"
#include "validate.h"

namespace smyrf {

/// Fills plan.heads from plan's dials and padding.
/// Cost a query head: n_hashes (Nq + Nk) (D multiply-adds and a radix sort).
void PlanLsh(const Problem& problem, Plan& plan);

}  // namespace smyrf
