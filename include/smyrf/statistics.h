// What a call did. Filled on request; costs two clock reads a query block.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "smyrf/export.h"
#include "smyrf/options.h"

namespace smyrf {

struct Statistics {
  /// What one (batch, query head) did; `heads` holds them in order (B, Hq).
  struct Head {
    /// Evaluated pairs over allowed pairs; `lsh` counts a pair as often as it is evaluated.
    double density = 1.0;
    /// Thread seconds of the head's blocks of queries: each block's time on the thread that did
    /// it, added up, so that it may be more than the time that passed. In `tree` a block includes
    /// its choice of nodes. What is done once for several blocks is not in it.
    double seconds = 0.0;
    /// `tree`: wall seconds, before the head's first block, of basis, trees, summaries and
    /// calibration; of what query heads share, an equal part. 0 where a plan was passed in.
    double planning_seconds = 0.0;
    /// Done as dense attention: `lsh` with a single cluster, `tree` with few valid rows, where
    /// dense is cheaper, no threshold meets the tolerance or means overflow.
    bool dense = false;
    /// `lsh`, `tree`: a valid query or key was not finite, so the head's output is NaN.
    bool non_finite = false;
    /// What calibration (`tree`) and the steps of narrow products lead to expect: relative error of
    /// out, RMS error of lse in nats.
    double expected_error = 0.0;
    double expected_lse_error = 0.0;
    /// What the products of pairs were computed in; never kAuto.
    Precision precision = Precision::kFloat32;
    /// `tree`: time that calibration expects of the head's blocks, over that of dense attention.
    double expected_work = 1.0;
  };
  Method method = Method::kDense;  ///< the method taken, never kAuto
  std::string reason;              ///< why it was taken
  std::int64_t batch = 0;
  std::int64_t query_heads = 0;
  std::vector<Head> heads;
  double planning_seconds = 0.0;   ///< wall time; 0 where a plan was passed in
  double execution_seconds = 0.0;  ///< wall time
  std::string instruction_set;

  /// In the machine's byte order, with a version and a checksum.
  SMYRF_API std::string to_bytes() const;
  /// Throws Error for bytes of another version and for damaged ones.
  SMYRF_API static Statistics from_bytes(std::string_view bytes);
};

}  // namespace smyrf
