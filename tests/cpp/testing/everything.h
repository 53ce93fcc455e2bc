// One set of arguments through every call that computes.
#pragma once

#include <cstddef>

#include "testing/gradients.h"

namespace smyrf::testing {

/// Calls of one set of arguments and what they gave.
struct Everything {
  Result result;
  GradientTensors gradients;
  Plan made;

  Everything(const Call& call, const Upstream& upstream)
      : result(Attend(call)),
        gradients(Backward(call, result, upstream)),
        made(plan(call.arguments(), call.options)) {
    // The other half of the keys could be any: here the same.
    const Shape& s = call.shape;
    const auto lse =
        Contiguous<void>(result.lse.data(), DType::kFloat32, {s.batch, s.query_heads, s.queries});
    const Result other = result;
    merge(result.out.mutable_view(), lse, other.out.view(),
          Contiguous<const void>(other.lse.data(), DType::kFloat32,
                                 {s.batch, s.query_heads, s.queries}),
          call.options.num_threads, call.options.thread_pool);
  }

  bool SameBits(const Everything& other) const {
    return result.SameBits(other.result) && gradients.SameBits(other.gradients) &&
           made.to_bytes() == other.made.to_bytes();
  }
};

}  // namespace smyrf::testing
