// `tree` as a whole: plans and carries out, a block at a time or from a stored plan.
#pragma once

#include "call/check.h"
#include "run/backward.h"
#include "smyrf/attention.h"

namespace smyrf {

/// `header`: an empty plan with dials and padding. Plans each block and carries it out at once, so
/// that pseudo-logits are computed once; what it planned is stored where outputs.plan is given.
/// Returns the share of its time that went by before blocks; 0 where no statistics are asked for.
double AttendTree(const Problem& problem, const Plan& header, const Outputs& outputs);

/// Fills in what to expect of each head of a `tree` plan. Carries nothing out.
void EstimateTree(const Problem& problem, const Plan& header, Statistics& statistics);

/// Carries out a plan of PlanTree.
void AttendTreePlan(const Problem& problem, const Plan& plan, const Outputs& outputs);

/// Gradients of AttendTree, which plans again, and of AttendTreePlan.
void BackwardTree(const Problem& problem, const Plan& header, const BackwardCall& call);
void BackwardTreePlan(const Problem& problem, const Plan& plan, const BackwardCall& call);

}  // namespace smyrf
