// Partial results over disjoint keys become one.
#pragma once

#include "smyrf/tensor.h"

namespace smyrf {

/// As `merge`, after its checks.
void ExecuteMerge(const MutableTensorView& out, const MutableTensorView& lse,
                  const TensorView& other_out, const TensorView& other_lse, int num_threads);

}  // namespace smyrf
