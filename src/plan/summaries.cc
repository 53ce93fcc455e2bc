#include "plan/summaries.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "kernels/parallel.h"

namespace smyrf {

Summaries::Summaries(const Problem& problem, std::int64_t batch, std::int64_t key_head,
                     const KeyTree& tree, int threads) {
  constexpr std::int64_t kTask = 256;  // rows or nodes
  const auto rows = static_cast<std::int64_t>(tree.key_order.size());
  const auto count = static_cast<std::int64_t>(tree.nodes.size());
  keys_ = kernels::Floats(rows * problem.depth);
  values_ = kernels::Floats(rows * problem.value_depth);
  mean_keys_ = kernels::Floats(count * problem.depth);
  mean_values_ = kernels::Floats(count * problem.value_depth);
  axes_ = kernels::Floats(count * kernels::kCoordinates);
  variances_ = kernels::Floats(count * kernels::kCoordinates);
  log_counts_ = kernels::Floats(count);
  value_spreads_ = kernels::Floats(count);
  const kernels::Floats coordinates(rows * kernels::kCoordinates);
  const kernels::Floats mean_coordinates(count * kernels::kCoordinates);
  view_.depth = problem.depth;
  view_.value_depth = problem.value_depth;
  view_.key_count = rows;
  view_.sinks = tree.sinks;
  view_.nodes = tree.nodes;
  view_.roots = tree.roots;
  view_.keys = keys_.get();
  view_.values = values_.get();
  view_.mean_keys = mean_keys_.get();
  view_.mean_values = mean_values_.get();
  view_.axes = axes_.get();
  view_.variances = variances_.get();
  view_.log_counts = log_counts_.get();
  view_.value_spreads = value_spreads_.get();

  const auto key_rows = kernels::RowsOf(problem.key, batch, key_head, tree.key_order);
  const auto value_rows = kernels::RowsOf(problem.value, batch, key_head, tree.key_order);
  ParallelFor((rows + kTask - 1) / kTask, threads, [&](std::int64_t task) {
    const std::int64_t begin = task * kTask;
    const std::int64_t n = std::min(kTask, rows - begin);
    kernels::GatherRows(key_rows, begin, n, problem.depth, keys_.get() + begin * problem.depth);
    kernels::GatherRows(value_rows, begin, n, problem.value_depth,
                        values_.get() + begin * problem.value_depth);
    kernels::Coordinates(key_rows, begin, n, problem.depth, tree.key_basis.data(),
                         coordinates.get() + begin * kernels::kCoordinates);
  });

  // Children lie behind their parents, levels side by side: from the back, a level at a time.
  std::vector<std::int64_t> level_begins{0};
  for (std::int64_t end = tree.roots; end < count;) {
    level_begins.push_back(end);
    std::int64_t next = end;
    for (std::int64_t id = level_begins[level_begins.size() - 2]; id < end; ++id) {
      next += tree.nodes[static_cast<std::size_t>(id)].child_count;
    }
    end = next;
  }
  level_begins.push_back(count);
  const kernels::NodeStatistics to{mean_keys_.get(),    mean_values_.get(), mean_coordinates.get(),
                                   axes_.get(),         variances_.get(),   log_counts_.get(),
                                   value_spreads_.get()};
  for (std::size_t level = level_begins.size() - 1; level > 0; --level) {
    const std::int64_t first = level_begins[level - 1];
    const std::int64_t last = level_begins[level];
    ParallelFor((last - first + kTask - 1) / kTask, threads, [&](std::int64_t task) {
      const std::int64_t begin = first + task * kTask;
      for (std::int64_t id = begin; id < std::min(last, begin + kTask); ++id) {
        kernels::SummarizeNode(view_, id, coordinates.get(), to);
      }
    });
  }
  ParallelFor((count + kTask - 1) / kTask, threads, [&](std::int64_t task) {
    const std::int64_t begin = task * kTask;
    for (std::int64_t id = begin; id < std::min(count, begin + kTask); ++id) {
      kernels::SplitVariances(view_, id, coordinates.get(),
                              tree.directions.data() + id * kernels::kCoordinates, to);
    }
  });
}

}  // namespace smyrf
