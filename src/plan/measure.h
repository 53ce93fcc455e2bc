// What thresholds would do to sampled queries: exact attention of them gives the true errors.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/nodes.h"
#include "plan/calibrate.h"

namespace smyrf {

inline constexpr std::int64_t kSampledBlocks = 32;
inline constexpr std::int64_t kRowsABlock = 4;

/// Tried at once, descending; at most kMostThresholds.
using Thresholds = std::vector<float>;
inline constexpr std::size_t kMostThresholds = 16;
using Sums = std::array<double, kMostThresholds>;

/// Sums by threshold, over sampled rows and blocks.
struct Measured {
  Sums out_error{}, lse_error{};      ///< squares, a row
  Sums out_error_2{}, lse_error_2{};  ///< their squares
  Sums exact{}, closed{}, visited{};  ///< keys and nodes, a block
  double out = 0.0;                   ///< squares
  std::int64_t rows = 0, blocks = 0;
};

/// For kRowsABlock queries of each of kSampledBlocks blocks, or of the first group of blocks alone.
/// Sums in fixed order, whatever the number of threads. `mass_weight` as for OpenBlock.
Measured Measure(const kernels::NodesView& nodes, const CalibrationTask& task,
                 const Thresholds& thresholds, float mass_weight, bool first_group_only);

}  // namespace smyrf
