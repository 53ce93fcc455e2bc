// Gradients of a block of queries over nodes and keys.
#pragma once

#include <cstdint>
#include <span>

#include "methods/tree/kernels/nodes.h"
#include "simd/kernels.h"
#include "smyrf/plan.h"

namespace smyrf::kernels {

/// Gradients of a key head in tree order and of its nodes' summaries; rows of PaddedDepth floats.
struct NodeGradients {
  float* keys = nullptr;         ///< (key_count, D)
  float* values = nullptr;       ///< (key_count, Dv)
  float* mean_keys = nullptr;    ///< (nodes, D)
  float* mean_values = nullptr;  ///< (nodes, Dv)
  float* along = nullptr;        ///< (nodes): by the variance along the direction
  float* rest = nullptr;         ///< (nodes): by NodesView::residuals
};

struct NodesBackwardTask {
  std::span<const std::int32_t> closed;
  const float* closed_logits = nullptr;  ///< as NodeLogits gives them
  std::span<const KeyRange> ranges;
  const float* directions = nullptr;   ///< (nodes, kCoordinates)
  std::span<const float> profiles;     ///< (roots, kCoordinates)
  const float* query_basis = nullptr;  ///< (D, kCoordinates)
  float scale = 1.0F;
  Rows out, grad_out;               ///< by position
  const float* lse = nullptr;       ///< (Nq) of the head, by position
  const float* grad_lse = nullptr;  ///< the same; null: none
};

/// As BackwardBlock for a block of `tree`: adds to `to`, gives grad_query. Cost: kTreeRows ((keys +
/// closed) (3 D + 2 Dv) + 3 closed kCoordinates) multiply-adds.
const float* BackwardNodes(const NodesView& nodes, const QueryLanes& lanes,
                           const NodesBackwardTask& task, const NodeGradients& to);

/// grad_keys (count, PaddedDepth(D)) += x (count, kCoordinates) times basis^T, where basis is
/// (D, kCoordinates): what coordinates' gradients are of keys'.
void AddCoordinates(const float* x, std::int64_t count, std::int64_t depth, const float* basis,
                    float* grad_keys);

}  // namespace smyrf::kernels
