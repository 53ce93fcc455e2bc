#include "methods/tree/summaries.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

#include "base/parallel.h"

namespace smyrf {

Summaries::Summaries(const Problem& problem, std::int64_t batch, std::int64_t key_head,
                     const KeyForestView& tree, const Run& run, std::vector<float>* profiles) {
  constexpr std::int64_t kTask = 256;  // rows
  const auto rows = static_cast<std::int64_t>(tree.key_order.size());
  const auto count = static_cast<std::int64_t>(tree.nodes.size());
  keys_ = kernels::PaddedRows(rows, problem.depth);
  values_ = kernels::PaddedRows(rows, problem.value_depth);
  mean_keys_ = kernels::PaddedRows(count, problem.depth);
  mean_values_ = kernels::PaddedRows(count, problem.value_depth);
  axes_ = kernels::Floats(count * kernels::kCoordinates);
  residuals_ = kernels::Floats(count);
  log_counts_ = kernels::Floats(count);
  value_spreads_ = kernels::Floats(count);
  const kernels::Floats coordinates(rows * kernels::kCoordinates);
  const kernels::Floats mean_coordinates(count * kernels::kCoordinates);
  const kernels::Floats variances(count * kernels::kCoordinates);
  view_.depth = problem.depth;
  view_.value_depth = problem.value_depth;
  view_.key_count = rows;
  view_.segments = tree.segments;
  view_.nodes = tree.nodes;
  view_.keys = keys_.get();
  view_.values = values_.get();
  view_.mean_keys = mean_keys_.get();
  view_.mean_values = mean_values_.get();
  view_.axes = axes_.get();
  view_.residuals = residuals_.get();
  view_.log_counts = log_counts_.get();
  view_.value_spreads = value_spreads_.get();

  const auto key_rows = kernels::RowsOf(problem.key, batch, key_head, tree.key_order);
  const auto value_rows = kernels::RowsOf(problem.value, batch, key_head, tree.key_order);
  ParallelFor((rows + kTask - 1) / kTask, run, [&](std::int64_t task) {
    const std::int64_t begin = task * kTask;
    const std::int64_t n = std::min(kTask, rows - begin);
    kernels::GatherRows(key_rows, begin, n, problem.depth, keys_.get() + begin * problem.depth);
    kernels::GatherRows(value_rows, begin, n, problem.value_depth,
                        values_.get() + begin * problem.value_depth);
    kernels::Coordinates(key_rows, begin, n, problem.depth, tree.key_basis.data(),
                         coordinates.get() + begin * kernels::kCoordinates);
  });

  FindRoots(tree);
  view_.root_of = root_of_.data();

  const kernels::NodeStatistics to{mean_keys_.get(),  mean_values_.get(),  mean_coordinates.get(),
                                   axes_.get(),       variances.get(),     residuals_.get(),
                                   log_counts_.get(), value_spreads_.get()};
  // A parent needs its children: from the back, a level at a time.
  for (const Segment& segment : tree.segments) {
    const std::vector<std::int64_t> level_begins = kernels::LevelBegins(tree.nodes, segment);
    for (std::size_t level = level_begins.size() - 1; level > 0; --level) {
      const std::int64_t first = level_begins[level - 1];
      const std::int64_t last = level_begins[level];
      ParallelFor((last - first + kTaskNodes - 1) / kTaskNodes, run, [&](std::int64_t task) {
        const std::int64_t begin = first + task * kTaskNodes;
        for (std::int64_t id = begin; id < std::min(last, begin + kTaskNodes); ++id) {
          kernels::SummarizeNode(view_, id, coordinates.get(), to);
        }
      });
    }
  }
  ParallelFor((count + kTaskNodes - 1) / kTaskNodes, run, [&](std::int64_t task) {
    const std::int64_t begin = task * kTaskNodes;
    for (std::int64_t id = begin; id < std::min(count, begin + kTaskNodes); ++id) {
      kernels::SplitVariances(view_, id, coordinates.get(),
                              tree.directions.data() + id * kernels::kCoordinates, to);
    }
  });
  if (profiles != nullptr) FindProfiles(variances.get(), *profiles);
}

void Summaries::FindRoots(const KeyForestView& tree) {
  root_of_.resize(tree.nodes.size());
  for (const Segment& segment : tree.segments) {
    const auto first = root_of_.begin() + segment.first_node;
    std::iota(first, first + segment.roots, static_cast<std::int32_t>(roots_.size()));
    for (std::int32_t i = 0; i < segment.roots; ++i) roots_.push_back(segment.first_node + i);
    for (std::int32_t id = segment.first_node; id < segment.last_node; ++id) {
      const Node& node = tree.nodes[static_cast<std::size_t>(id)];
      std::fill_n(root_of_.begin() + node.first_child, node.child_count,
                  root_of_[static_cast<std::size_t>(id)]);
    }
  }
}

/// A mean or a spread that is not finite makes its root's so.
bool Summaries::finite() const {
  const auto rows = [&](const float* first, std::int64_t width) {
    return std::ranges::all_of(roots_, [&](std::int64_t root) {
      return std::all_of(first + root * width, first + (root + 1) * width,
                         [](float x) { return std::isfinite(x); });
    });
  };
  return rows(view_.mean_keys, view_.depth) && rows(view_.mean_values, view_.value_depth) &&
         rows(view_.value_spreads, 1);
}

/// Nodes under one root differ in how much their axes leave, little in where it lies.
void Summaries::FindProfiles(const float* variances, std::vector<float>& profiles) const {
  constexpr auto kWide = static_cast<std::size_t>(kernels::kCoordinates);
  const std::size_t roots = roots_.size();
  std::vector<double> sums(roots * kWide);
  for (std::size_t id = 0; id < root_of_.size(); ++id) {
    const std::size_t to = static_cast<std::size_t>(root_of_[id]) * kWide;
    for (std::size_t c = 0; c < kWide; ++c) {
      sums[to + c] += static_cast<double>(variances[id * kWide + c]);
    }
  }
  profiles.clear();
  for (auto of_root = sums.begin(); of_root != sums.end(); of_root += kWide) {
    const double all = std::accumulate(of_root, of_root + kWide, 0.0);
    for (auto part = of_root; part != of_root + kWide; ++part) {
      profiles.push_back(all > 0.0 ? static_cast<float>(*part / all) : 0.0F);
    }
  }
}

}  // namespace smyrf
