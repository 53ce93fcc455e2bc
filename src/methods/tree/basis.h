// The common basis of queries and keys: the coordinates in which a difference of keys counts by
// what it does to logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "methods/tree/kernels/nodes.h"

namespace smyrf {

/// Maps from rows to kCoordinates leading coordinates, (D, kCoordinates) each, zero past D.
struct Basis {
  std::vector<float> query;       ///< y: second moment of the queries is the identity
  std::vector<float> key;         ///< x: covariance of the keys is diagonal, descending
  std::vector<float> query_tree;  ///< y times the deviation of x: what tells queries apart
};

/// With Sq = E[q q^T] = L L^T and Sk = Cov(k) = E[k k^T] - E[k] E[k]^T, the eigenvectors U of
/// L^T Sk L give x = U^T L^T k and y = U^T L^-1 q: x.y = k.q, and dropping trailing coordinates
/// loses the least mean logit variance. (D, D) moments, row-major; `key_factor`: the keys' moments
/// are of the keys times it. Where a moment is 0 the basis is the identity.
Basis FindBasis(std::span<const double> query_moment, std::span<const double> key_covariance,
                std::int64_t depth, double query_factor, double key_factor);

}  // namespace smyrf
