// What the float64 reference evaluates of a plan of `tree`: keys, and nodes by their definitions.
#pragma once

#include <memory>

#include "reference/columns.h"
#include "run/plan_parts.h"

namespace smyrf {

/// Problem and plan must outlive it.
std::unique_ptr<ReferenceColumns> TreeColumnsOf(const Problem& problem, const PlanView& plan);

}  // namespace smyrf
