// Gradients of a block of queries, for the executors.
#pragma once

#include <cstdint>

#include "simd/kernels.h"

namespace smyrf::kernels {

struct BackwardTask {
  BlockTask block;
  Rows out, grad_out;               ///< in the block's query order
  const float* lse = nullptr;       ///< (Nq) of the head, by position
  const float* grad_lse = nullptr;  ///< the same; null: none
  float* grad_key = nullptr;        ///< (Nk, PaddedDepth(D)), by position
  float* grad_value = nullptr;      ///< (Nk, PaddedDepth(Dv)), by position
};

/// Adds the block's part to grad_key and grad_value and gives its grad_query, (rows, D) in memory
/// of the calling thread, valid until its next call. A query whose lse is -inf adds and gets 0.
/// Cost: rows * keys * (3 D + 2 Dv) multiply-adds; one pass over the keys.
const float* BackwardBlock(const BackwardTask& task);

}  // namespace smyrf::kernels
