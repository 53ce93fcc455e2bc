#include "methods/tree/balanced_tree.h"

#include <cstddef>

#include "base/parallel.h"
#include "methods/tree/kernels/split.h"

namespace smyrf {
namespace {

constexpr std::int64_t kMaxRoots = 32;
constexpr std::int64_t kLeavesARoot = 8;  // at least, or the roots alone cost as much as the keys

void SplitAll(const kernels::SplitRows& rows, const Part& part) {
  if (part.leaves < 2) return;
  kernels::Split(rows, part.begin, part.end, part.Left().end - part.begin);
  SplitAll(rows, part.Left());
  SplitAll(rows, part.Right());
}

/// Halves every part that can be halved.
std::vector<Part> Halved(const std::vector<Part>& parts) {
  std::vector<Part> result;
  for (const Part& part : parts) {
    if (part.leaves < 2) {
      result.push_back(part);
    } else {
      result.push_back(part.Left());
      result.push_back(part.Right());
    }
  }
  return result;
}

}  // namespace

void BalanceOrder(const float* coordinates, std::span<std::int32_t> order, std::int64_t leaves,
                  const Run& run) {
  std::vector<Part> parts{{0, static_cast<std::int64_t>(order.size()), leaves}};
  const auto for_parts = [&](const auto& split) {
    ParallelFor(std::ssize(parts), run, [&](std::int64_t i) {
      const Part& part = parts[static_cast<std::size_t>(i)];
      if (part.leaves < 2) return;
      const std::int64_t count = part.end - part.begin;
      const auto of_part =
          order.subspan(static_cast<std::size_t>(part.begin), static_cast<std::size_t>(count));
      const kernels::SplitRows rows = kernels::LoadSplitRows(coordinates, of_part);
      split(rows, Part{0, count, part.leaves});
      kernels::StoreOrder(rows, of_part);
    });
  };
  // The first levels a part a task, then whole subtrees.
  while (run.threads > 1 && std::ssize(parts) < std::int64_t{2} * run.threads &&
         std::ssize(parts) < leaves) {
    for_parts([](const kernels::SplitRows& rows, const Part& part) {
      kernels::Split(rows, 0, part.end, part.Left().end);
    });
    parts = Halved(parts);
  }
  for_parts(SplitAll);
}

std::vector<std::int32_t> LeafBounds(std::int32_t begin, std::int64_t rows, std::int64_t leaves) {
  std::vector<Part> parts{{begin, begin + rows, leaves}};
  while (std::ssize(parts) < leaves) parts = Halved(parts);
  std::vector<std::int32_t> bounds{begin};
  for (const Part& part : parts) bounds.push_back(static_cast<std::int32_t>(part.end));
  return bounds;
}

void AddNodes(std::int64_t leaves, Segment& segment, std::vector<Node>& nodes) {
  std::vector<Part> level{{segment.begin + segment.sinks, segment.end, leaves}};
  while (std::ssize(level) < kMaxRoots && leaves >= 2 * kLeavesARoot * std::ssize(level)) {
    level = Halved(level);
  }
  const auto add = [&](const Part& part) {
    nodes.push_back(
        {static_cast<std::int32_t>(part.begin), static_cast<std::int32_t>(part.end), 0, 0});
  };
  std::size_t first = nodes.size();  // node of the level's first part
  segment.first_node = static_cast<std::int32_t>(first);
  segment.roots = static_cast<std::int32_t>(level.size());
  for (const Part& part : level) add(part);
  while (!level.empty()) {
    std::vector<Part> next;
    const std::size_t next_first = nodes.size();
    for (std::size_t i = 0; i < level.size(); ++i) {
      if (level[i].leaves < 2) continue;
      const std::vector<Part> children = Halved(Halved({level[i]}));
      nodes[first + i].first_child = static_cast<std::int32_t>(nodes.size());
      nodes[first + i].child_count = static_cast<std::int32_t>(children.size());
      for (const Part& part : children) add(part);
      next.insert(next.end(), children.begin(), children.end());
    }
    level = std::move(next);
    first = next_first;
  }
  segment.last_node = static_cast<std::int32_t>(nodes.size());
}

}  // namespace smyrf
