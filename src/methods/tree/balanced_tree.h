// Balanced trees over coordinates: every split halves a node's leaves along its leading principal
// direction, mended by a step of 2-means.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/run.h"
#include "run/plan_parts.h"

namespace smyrf {

/// Rows [begin, end) of an order, of `leaves` leaves.
struct Part {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t leaves = 1;

  /// The left half: floor(leaves / 2) of the leaves and as large a share of the rows, rounded down.
  Part Left() const {
    const std::int64_t half = leaves / 2;
    return {begin, begin + (end - begin) * half / leaves, half};
  }
  Part Right() const {
    const Part left = Left();
    return {left.end, end, leaves - left.leaves};
  }
};

/// Puts `order` (rows of coordinates, (N, kCoordinates)) into the order of a balanced tree with so
/// many leaves, each in the order that its rows had. Same order for any number of threads.
/// Cost: log2(leaves) levels of two projections, two selections and a move of all columns.
void BalanceOrder(const float* coordinates, std::span<std::int32_t> order, std::int64_t leaves,
                  const Run& run);

/// The leaves' bounds of such an order, offset by `begin`: leaves + 1 of them.
std::vector<std::int32_t> LeafBounds(std::int32_t begin, std::int64_t rows, std::int64_t leaves);

/// Adds the nodes of such an order of a segment's keys behind its sinks: up to 32 roots, every
/// other node at most 4 to a parent.
void AddNodes(std::int64_t leaves, Segment& segment, std::vector<Node>& nodes);

}  // namespace smyrf
