// Turns a call's arguments into a Problem and a method that takes it, or throws the Error that says
// what is wrong.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "methods/method.h"
#include "run/plan_parts.h"
#include "run/problem.h"
#include "smyrf/attention.h"

namespace smyrf {

/// Checks everything but options' method and dials; dropout stays off. `value` is looked at where
/// `with_value`.
Problem CheckProblem(const Arguments& arguments, const Options& options, bool with_value);

/// Throws where a call gives the dial a value out of its range.
void CheckDial(const Dial& dial, const Options& options);

/// The method that takes the call; `plan` becomes its info.
const AttentionMethod& CheckMethod(const Request& request, PlanInfo& plan);

/// Throws unless the plan keeps what smyrf/plan.h says of it. Cost: one look at each of its
/// numbers.
void CheckStructure(const PlanView& plan);

/// Throws unless the plan was made for such a problem and the call asks for nothing else; gives
/// the problem the plan's padding. Returns the plan's method.
const AttentionMethod& CheckPlan(const Plan& plan, const Arguments& arguments,
                                 const Options& options, Problem& problem);

void CheckOutputs(const Outputs& outputs, const Problem& problem);

/// The arguments of `attention_backward` that `attention` does not have.
void CheckBackward(const TensorView& out, const TensorView& lse, const TensorView& grad_out,
                   const std::optional<TensorView>& grad_lse, const Gradients& gradients,
                   const Problem& problem);

/// The arguments of `merge`.
void CheckMerge(const MutableTensorView& out, const MutableTensorView& lse,
                const TensorView& other_out, const TensorView& other_lse, int num_threads);

const char* Name(DType dtype);

/// A number for a message, as short as tells it from every other: 0.1, and 1.0000001 is no 1.
std::string Exact(double number);

}  // namespace smyrf
