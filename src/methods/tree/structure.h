// Whether a plan of `tree` holds together.
#pragma once

#include "run/plan_parts.h"

namespace smyrf {

/// Throws unless trees and heads keep what smyrf/plan.h says of them.
void CheckTrees(const PlanView& plan);

}  // namespace smyrf
