// The paper's planner: balanced clusters of an asymmetric hash (SMYRF, Daras et al. 2020).
#pragma once

#include "run/plan_parts.h"
#include "run/problem.h"

namespace smyrf {

/// Fills plan.heads with `rounds` rounds from `first_round` on, which become the plan's n_hashes;
/// cluster_size, seed and padding are the plan's. A head with a single cluster has blocks in round
/// 0 only. Cost a query head: rounds (Nq + Nk) (D multiply-adds and a radix sort), and once a call
/// a pass over the rows for their sizes.
void PlanLsh(const Problem& problem, std::int64_t first_round, std::int64_t rounds,
             PlanParts& plan);

/// Rounds that are planned and carried out together where nobody keeps the plan, so that memory
/// does not grow with their number. The result is the same for any.
std::int64_t RoundsAtOnce(const Problem& problem, std::int64_t cluster_size);

}  // namespace smyrf
