// What thresholds would do to sampled queries: exact attention of them gives the true errors.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "methods/tree/calibrate.h"
#include "methods/tree/kernels/nodes.h"

namespace smyrf {

/// kRowsABlock rows of each sampled block: kFewestSampled up to kBlocksOfFewest blocks, and from
/// there on with the square root of their number, so that their part of the work falls.
inline constexpr std::int64_t kFewestSampled = 32;
inline constexpr std::int64_t kBlocksOfFewest = 1024;
inline constexpr std::int64_t kRowsABlock = 4;
/// Blocks whose sampled rows fill the lanes.
inline constexpr std::int64_t kGroupBlocks = kernels::kTreeRows / kRowsABlock;

/// Tried at once.
inline constexpr std::size_t kMostThresholds = 48;
using Sums = std::array<double, kMostThresholds>;

/// Sums by threshold, over sampled rows and blocks.
struct Measured {
  Sums out_error{}, lse_error{};      ///< squares, a row
  Sums out_error_2{}, lse_error_2{};  ///< their squares
  Sums exact{}, closed{}, visited{};  ///< keys and nodes, a block
  double out = 0.0;                   ///< squares
  std::int64_t rows = 0, blocks = 0;

  void Add(const Measured& other);
};

/// Exact attention of rows: means over them.
struct ExactRows {
  double square_output = 0.0;  ///< |out|^2, of folded values
  double near_share = 0.0;     ///< of keys at and next to a row's own position, in its mass
};

/// kernels::kTreeRows rows of kGroupBlocks blocks.
struct SampledGroup {
  std::vector<std::int64_t> blocks;   ///< of the query tree
  std::vector<std::int32_t> queries;  ///< positions of the rows, block by block
  std::array<std::int64_t, static_cast<std::size_t>(kGroupBlocks) + 1> block_rows{};
};

/// kRowsABlock queries of each of some blocks, evenly spread over the query tree.
class SampledRows {
 public:
  /// `sketch`: `nodes` with folded values, the last column ones (ValueSketch).
  SampledRows(const kernels::NodesView& nodes, const kernels::NodesView& sketch,
              const CalibrationTask& task);

  std::int64_t count() const;

  /// Of the first group's rows.
  ExactRows Exact() const;

  std::int64_t groups() const { return std::ssize(groups_); }

  /// What the `thresholds`, descending, do to the rows of groups [begin, end). Shares are taken as
  /// the smallest threshold finds them. Sums in fixed order, whatever the number of threads. Cost:
  /// kTreeRows visited (D + kCoordinates) multiply-adds for each block, and D + 17 for each row
  /// and key.
  Measured Measure(std::span<const float> thresholds, const Scoring& scoring, std::int64_t begin,
                   std::int64_t end) const;

 private:
  const kernels::NodesView& nodes_;
  const kernels::NodesView& sketch_;
  const CalibrationTask& task_;
  std::vector<SampledGroup> groups_;
};

}  // namespace smyrf
