// Partial results over disjoint keys become one.
#pragma once

#include "base/run.h"
#include "smyrf/tensor.h"

namespace smyrf {

/// As `merge`, after its checks.
void ExecuteMerge(const MutableTensorView& out, const MutableTensorView& lse,
                  const TensorView& other_out, const TensorView& other_lse, const Run& run);

}  // namespace smyrf
