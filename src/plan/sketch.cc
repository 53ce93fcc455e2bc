#include "plan/sketch.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "plan/random.h"

namespace smyrf {
namespace {

constexpr std::uint64_t kSignStream = 0x7369676EU;  // of random numbers

}  // namespace

ValueSketch::ValueSketch(const kernels::NodesView& nodes, std::uint64_t seed)
    : width_(std::min(nodes.value_depth, kSketch) + 1) {
  const std::int64_t depth = nodes.value_depth;
  const std::int64_t columns = width_ - 1;
  std::vector<float> signs(static_cast<std::size_t>(depth), 1.0F);
  for (std::int64_t c = columns; c < depth; ++c) {
    if (RandomBits(seed, kSignStream, static_cast<std::uint64_t>(c)) >> 63 != 0) {
      signs[static_cast<std::size_t>(c)] = -1.0F;
    }
  }
  const auto fold = [&](const float* rows, std::int64_t count) {
    kernels::Floats folded(count * width_);
    for (std::int64_t i = 0; i < count; ++i) {
      const float* row = rows + i * depth;
      float* to = folded.get() + i * width_;
      std::copy_n(row, columns, to);
      to[columns] = 1.0F;
      for (std::int64_t first = columns; first < depth; first += columns) {
        const float* sign = signs.data() + first;
        const std::int64_t n = std::min(columns, depth - first);
        for (std::int64_t c = 0; c < n; ++c) to[c] += sign[c] * row[first + c];
      }
    }
    return folded;
  };
  values_ = fold(nodes.values, nodes.key_count);
  means_ = fold(nodes.mean_values, static_cast<std::int64_t>(nodes.nodes.size()));
}

kernels::NodesView ValueSketch::View(kernels::NodesView nodes) const {
  nodes.value_depth = width_;
  nodes.values = values_.get();
  nodes.mean_values = means_.get();
  return nodes;
}

}  // namespace smyrf
