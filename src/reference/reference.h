// The float64 executor that all others are compared with: plain loops, no SIMD, no tiles.
#pragma once

#include "call/check.h"
#include "smyrf/plan.h"

namespace smyrf {

/// out (B, Hq, Nq, Dv) and lse (B, Hq, Nq), contiguous; lse may be null.
void ExecuteReference(const Problem& problem, const Plan& plan, double* out, double* lse);

/// Gradients of query, key and value, contiguous, float64. grad_out as a call's; grad_lse (B, Hq,
/// Nq) may be null.
void ExecuteReferenceBackward(const Problem& problem, const Plan& plan, const TensorView& grad_out,
                              const float* grad_lse, double* grad_query, double* grad_key,
                              double* grad_value);

}  // namespace smyrf
