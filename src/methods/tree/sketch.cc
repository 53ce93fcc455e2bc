#include "methods/tree/sketch.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/parallel.h"
#include "base/random.h"

namespace smyrf {
namespace {

constexpr std::uint64_t kSignStream = 0x7369676EU;  // of random numbers
constexpr float kWeight = 0.25F;                    // 1 / sqrt(kSketch)

}  // namespace

ValueSketch::ValueSketch(const kernels::NodesView& nodes, std::uint64_t seed, const Run& run)
    : width_(std::min(nodes.value_depth, kSketch) + 1) {
  const std::int64_t depth = nodes.value_depth;
  const std::int64_t columns = width_ - 1;
  using kernels::kCoordinates;
  static_assert(kSketch <= kCoordinates);
  std::vector<float> mix(static_cast<std::size_t>(depth * kCoordinates));
  for (std::int64_t c = 0; c < depth; ++c) {
    float* row = mix.data() + c * kCoordinates;
    if (depth <= kSketch) {
      row[c] = 1.0F;
      continue;
    }
    const std::uint64_t signs = RandomBits(seed, kSignStream, static_cast<std::uint64_t>(c));
    for (std::int64_t to = 0; to < kSketch; ++to) {
      row[to] = (signs >> to & 1U) != 0 ? -kWeight : kWeight;
    }
  }
  const auto fold = [&](const float* rows, std::int64_t count) {
    constexpr std::int64_t kTask = 256;
    kernels::Floats folded = kernels::PaddedRows(count, width_);
    ParallelFor((count + kTask - 1) / kTask, run, [&](std::int64_t task) {
      const std::int64_t begin = task * kTask;
      const std::int64_t n = std::min(kTask, count - begin);
      const kernels::Floats mixed(kTask * kCoordinates);
      kernels::Coordinates(kernels::RowsOf(rows, depth), begin, n, depth, mix.data(), mixed.get());
      for (std::int64_t i = 0; i < n; ++i) {
        float* to = folded.get() + (begin + i) * width_;
        std::copy_n(mixed.get() + i * kCoordinates, columns, to);
        to[columns] = 1.0F;
      }
    });
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
