// Memory of Partials that outlive the kernel that gave them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "simd/partial.h"

namespace smyrf {

/// Rows of `depth` floats. Where the caller has memory for out or for the largest logits, they are
/// not held here, and null in a row.
class Partials {
 public:
  Partials() = default;
  Partials(std::int64_t rows, std::int64_t depth, bool own_out = true, bool own_max = true)
      : depth_(depth),
        out_(static_cast<std::size_t>(own_out ? rows * depth : 0)),
        max_(static_cast<std::size_t>(own_max ? rows : 0)),
        sum_(static_cast<std::size_t>(rows)) {}

  kernels::Partial Row(std::int64_t i) {
    return {out_.empty() ? nullptr : out_.data() + i * depth_,
            max_.empty() ? nullptr : max_.data() + i, sum_.data() + i, depth_, depth_};
  }

 private:
  std::int64_t depth_ = 0;
  std::vector<float> out_, max_, sum_;
};

}  // namespace smyrf
