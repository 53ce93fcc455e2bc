// The float64 executor that all others are compared with: plain loops, no SIMD, no tiles.
#pragma once

#include "reference/columns.h"
#include "run/problem.h"

namespace smyrf {

/// out (B, Hq, Nq, Dv) and lse (B, Hq, Nq), contiguous; lse may be null.
void ExecuteReference(const Problem& problem, const ReferenceColumns& columns, double* out,
                      double* lse);

/// Gradients of query, key and value, contiguous, float64. grad_out as a call's; grad_lse (B, Hq,
/// Nq) may be null.
void ExecuteReferenceBackward(const Problem& problem, const ReferenceColumns& columns,
                              const TensorView& grad_out, const float* grad_lse, double* grad_query,
                              double* grad_key, double* grad_value);

}  // namespace smyrf
