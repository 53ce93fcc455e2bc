// Values folded to few columns, in which calibration measures errors.
#pragma once

#include <cstdint>

#include "base/run.h"
#include "base/workspace.h"
#include "methods/tree/kernels/nodes.h"

namespace smyrf {

/// Every value row, and every node's mean value, as at most kSketch signed sums of all its columns
/// and a last column of ones, which counts mass. With random signs the square of a row's norm is
/// unbiased (Achlioptas 2003), off by a third for one row or where values have rank one; exact up
/// to Dv = kSketch. Every column is in every sum: fewer could cancel where columns repeat.
class ValueSketch {
 public:
  static constexpr std::int64_t kSketch = 16;

  ValueSketch(const kernels::NodesView& nodes, std::uint64_t seed, const Run& run);

  /// `nodes` with the sketch in place of values; value_depth counts the column of ones.
  kernels::NodesView View(kernels::NodesView nodes) const;

 private:
  std::int64_t width_;  ///< with the column of ones
  kernels::Floats values_, means_;
};

}  // namespace smyrf
