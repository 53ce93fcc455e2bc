// Finds a head's threshold: exact attention of sampled rows gives the true error of any threshold
// on them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/run.h"
#include "methods/tree/kernels/nodes.h"
#include "methods/tree/open.h"
#include "methods/tree/sketch.h"

namespace smyrf {

/// The queries of one (batch, query head) and what is wanted of them.
struct CalibrationTask {
  kernels::Rows queries;             ///< in tree order
  std::vector<std::int32_t> bounds;  ///< of the query blocks in that order
  double scale = 1.0;
  const float* basis = nullptr;     ///< KeyForest::query_basis
  std::span<const float> profiles;  ///< KeyForest's
  double tolerance = 0.0;
  std::optional<double> max_density{};
  std::uint64_t seed = 0;
  Run run;
};

/// Estimates for the whole head, from the sampled rows.
struct Calibration {
  float threshold = 0.0F;  ///< for OpenBlock
  Scoring scoring;         ///< for OpenBlock
  double error = 0.0;      ///< relative error of out
  double lse_error = 0.0;  ///< RMS, nats
  double density = 1.0;    ///< exact and summary pairs over all pairs
  double work = 1.0;       ///< time over that of dense attention, planning of blocks included
};

/// The largest threshold whose errors, of out (relative) and of lse (RMS, nats), are within the
/// tolerance on 4 queries of each of 32 blocks or more; no value where none is. With max_density, a
/// larger one where that is over it, or the smallest where none meets the tolerance. Errors between
/// the thresholds of a fixed geometric grid are interpolated. Rows follow from (seed, number of
/// blocks). Cost: 128 exact rows or more, and the nodes that their blocks visit.
std::optional<Calibration> Calibrate(const kernels::NodesView& nodes, const ValueSketch& values,
                                     const CalibrationTask& task);

}  // namespace smyrf
