// Hashes of what calls give: of values only, however they are stored.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "testing/gradients.h"

namespace smyrf::testing {

/// FNV-1a over words of 64 bits, whose upper halves are folded back: a product alone carries
/// upwards only.
class Hash {
 public:
  void Add(std::uint64_t bits) {
    value_ = (value_ ^ bits) * 0x100000001B3U;
    value_ ^= value_ >> 32;
  }
  void Add(std::int64_t x) { Add(static_cast<std::uint64_t>(x)); }
  void Add(std::int32_t x) { Add(std::int64_t{x}); }
  void Add(bool x) { Add(std::int64_t{x ? 1 : 0}); }
  /// All NaN count as one: which of two operands passes on its payload is the compiler's choice.
  void Add(double x) {
    Add(std::bit_cast<std::uint64_t>(std::isnan(x) ? std::numeric_limits<double>::quiet_NaN() : x));
  }
  void Add(float x) {
    Add(std::uint64_t{
        std::bit_cast<std::uint32_t>(std::isnan(x) ? std::numeric_limits<float>::quiet_NaN() : x)});
  }
  template <class T>
  void Add(std::span<const T> values) {
    Add(static_cast<std::int64_t>(values.size()));
    for (const T& x : values) Add(x);
  }
  template <class T>
  void Add(const std::vector<T>& values) {
    Add(std::span<const T>(values));
  }
  /// The memory of a contiguous tensor.
  void Add(const Tensor& tensor) {
    const std::vector<std::byte>& memory = tensor.memory();
    const auto size = static_cast<std::size_t>(SizeOf(tensor.dtype()));
    const std::uint32_t infinity = Encoded(kInfinity, tensor.dtype());
    const std::uint32_t nan = Encoded(kNaN, tensor.dtype());
    const std::uint32_t magnitude = (1U << (8 * size - 1)) - 1U;
    for (std::size_t at = 0; at < memory.size(); at += size) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, memory.data() + at, size);
      Add(std::uint64_t{(bits & magnitude) > infinity ? nan : bits});
    }
  }
  std::uint32_t value() const { return static_cast<std::uint32_t>(value_ ^ (value_ >> 32)); }

 private:
  std::uint64_t value_ = 0xCBF29CE484222325U;
};

inline void AddValid(Hash& hash, const std::vector<std::vector<std::int32_t>>& lists,
                     std::int64_t batch, std::int64_t all) {
  std::vector<std::int32_t> rows(static_cast<std::size_t>(all));
  std::iota(rows.begin(), rows.end(), 0);
  for (std::int64_t b = 0; b < batch; ++b) {
    hash.Add(lists.empty() ? rows : lists[static_cast<std::size_t>(b)]);
  }
}

/// Nodes count by their keys, level by level from the roots, whatever their numbers are.
inline void AddTree(Hash& hash, const KeyForest& tree) {
  hash.Add(tree.key_order);
  const Segment segment = tree.segments.empty() ? Segment{} : tree.segments[0];
  hash.Add(segment.sinks);
  hash.Add(tree.query_basis);
  hash.Add(tree.key_basis);
  hash.Add(segment.roots);
  hash.Add(tree.profiles);
  hash.Add(static_cast<std::int64_t>(tree.nodes.size()));
  if (tree.nodes.empty()) return;
  const std::size_t width = tree.directions.size() / tree.nodes.size();
  std::vector<std::int32_t> level(static_cast<std::size_t>(segment.roots));
  std::iota(level.begin(), level.end(), 0);
  while (!level.empty()) {
    std::vector<std::int32_t> below;
    for (const std::int32_t id : level) {
      const auto at = static_cast<std::size_t>(id);
      const Node& node = tree.nodes[at];
      hash.Add(node.begin);
      hash.Add(node.end);
      hash.Add(node.child_count);
      hash.Add(std::span(tree.directions).subspan(at * width, width));
      for (std::int32_t i = 0; i < node.child_count; ++i) below.push_back(node.first_child + i);
    }
    level = below;
  }
}

/// `tree` is null unless the method is `tree`.
inline void AddHead(Hash& hash, const HeadPlan& head, const KeyForest* tree) {
  hash.Add(head.dense);
  hash.Add(head.non_finite);
  hash.Add(head.expected_error);
  hash.Add(head.expected_lse_error);
  hash.Add(head.expected_work);
  hash.Add(head.query_order);
  hash.Add(head.key_order);
  hash.Add(static_cast<std::int64_t>(head.blocks.size()));
  for (const QueryBlock& block : head.blocks) {
    hash.Add(block.begin);
    hash.Add(block.end);
    hash.Add(std::uint64_t{block.last_range - block.first_range});
    for (std::uint32_t i = block.first_range; i < block.last_range; ++i) {
      const KeyRange& range = head.ranges[i];
      hash.Add(range.begin);
      hash.Add(range.end);
      hash.Add(false);  // it is never partly masked
    }
    hash.Add(std::uint64_t{block.last_node - block.first_node});
    for (std::uint32_t i = block.first_node; i < block.last_node; ++i) {
      const Node& node = tree->nodes[static_cast<std::size_t>(head.nodes[i])];
      hash.Add(node.begin);
      hash.Add(node.end);
      hash.Add(node.child_count);
    }
  }
}

/// Every number of a plan. The one place that knows how a plan is read.
inline void AddPlan(Hash& hash, const Plan& given) {
  const PlanParts plan = Unpack(given);
  hash.Add(std::int64_t{static_cast<int>(plan.method)});
  for (const std::int64_t size :
       {plan.batch, plan.query_heads, plan.key_heads, plan.queries, plan.keys, plan.depth}) {
    hash.Add(size);
  }
  hash.Add(plan.is_causal);
  hash.Add(plan.has_attn_mask);
  hash.Add(plan.window ? plan.window->left : -2);
  hash.Add(plan.window ? plan.window->right : -2);
  AddValid(hash, plan.valid_queries, plan.batch, plan.queries);
  AddValid(hash, plan.valid_keys, plan.batch, plan.keys);
  hash.Add(plan.n_hashes);
  hash.Add(plan.cluster_size);
  hash.Add(plan.tolerance);
  hash.Add(plan.max_density.value_or(-1.0));
  hash.Add(plan.dense_below);
  hash.Add(plan.scale.value_or(0.0));
  hash.Add(plan.seed);
  const bool is_tree = plan.method == Method::kTree;
  const std::int64_t group = plan.key_heads > 0 ? plan.query_heads / plan.key_heads : 1;
  for (std::int64_t b = 0; b < plan.batch && !plan.heads.empty(); ++b) {
    for (std::int64_t h = 0; h < plan.query_heads; ++h) {
      const KeyForest* tree = is_tree ? &plan.forest(b, h / group) : nullptr;
      if (is_tree && h % group == 0) AddTree(hash, *tree);
      for (std::int64_t round = 0; round < plan.rounds(); ++round) {
        AddHead(hash, plan.head(round, b, h), tree);
      }
    }
  }
  for (std::int64_t b = 0; b < plan.batch; ++b) {
    for (std::int64_t h = 0; h < plan.query_heads; ++h) hash.Add(given.density(b, h));
  }
}

/// All but texts and times.
inline void AddStatistics(Hash& hash, const Statistics& statistics) {
  hash.Add(std::int64_t{static_cast<int>(statistics.method)});
  for (const Statistics::Head& head : statistics.heads) {
    hash.Add(head.density);
    hash.Add(head.dense);
    hash.Add(head.non_finite);
    hash.Add(head.expected_error);
    hash.Add(head.expected_lse_error);
    hash.Add(head.expected_work);
  }
}

inline void AddResult(Hash& hash, const Result& result) {
  hash.Add(result.out);
  hash.Add(result.lse);
  AddStatistics(hash, result.statistics);
}

inline void AddGradients(Hash& hash, const GradientTensors& gradients) {
  hash.Add(gradients.query);
  hash.Add(gradients.key);
  hash.Add(gradients.value);
}

}  // namespace smyrf::testing
