// `tree` as a whole: plans and carries out, a block at a time or from a stored plan.
#pragma once

#include "run/backward.h"
#include "run/plan_parts.h"
#include "run/problem.h"
#include "smyrf/attention.h"

namespace smyrf {

/// Plans each block by the dials of `info` and carries it out at once, so that pseudo-logits are
/// computed once; what it planned is stored where outputs.plan is given. Returns the share of its
/// time that went by before blocks; 0 where no statistics are asked for.
double AttendTree(const Problem& problem, const PlanInfo& info, const Outputs& outputs);

/// Fills in what to expect of each head. Carries nothing out.
void EstimateTree(const Problem& problem, const PlanInfo& info, Statistics& statistics);

/// Evaluated over allowed pairs of one head.
double TreeDensity(const PlanView& plan, std::int64_t batch, std::int64_t head);

/// Carries out a plan of PlanTree.
void AttendTreePlan(const Problem& problem, const Plan& plan, const Outputs& outputs);

/// Gradients of AttendTree, which plans again, and of AttendTreePlan.
void BackwardTree(const Problem& problem, const PlanInfo& info, const BackwardCall& call);
void BackwardTreePlan(const Problem& problem, const Plan& plan, const BackwardCall& call);

}  // namespace smyrf
