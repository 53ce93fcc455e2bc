// Whether a plan holds together: executors trust every index of it, write the rows of its blocks
// from several threads at once, and leave rows unwritten that it forgets.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "base/message.h"
#include "call/check.h"
#include "methods/tree/kernels/nodes.h"

namespace smyrf {
namespace {

void Require(bool holds, const char* part, const char* rule) {
  if (holds) return;
  Fail(ErrorKind::kValue, "plan: its ", part, " are damaged: ", rule, "; make it with plan()");
}

bool IsPart(std::int64_t begin, std::int64_t end, std::int64_t size) {
  return begin >= 0 && begin <= end && end <= size;
}

/// Whether lists hold each valid row of one batch entry exactly once. Costs one look a row.
class Permutations {
 public:
  /// `valid`: null where all of `rows` rows are.
  Permutations(std::int64_t rows, const std::vector<std::int32_t>* valid)
      : rows_(rows), valid_(valid) {}

  std::int64_t count() const { return valid_ == nullptr ? rows_ : std::ssize(*valid_); }

  bool Holds(const std::vector<std::int32_t>& order) {
    if (std::ssize(order) != count()) return false;
    if (last_list_.empty()) MarkValid();
    for (const std::int32_t row : order) {
      // Of a negative one the conversion is too large.
      const auto at = static_cast<std::size_t>(row);
      if (at >= last_list_.size() || last_list_[at] != list_) return false;
      last_list_[at] = list_ + 1;
    }
    ++list_;
    return true;
  }

 private:
  void MarkValid() {
    last_list_.assign(static_cast<std::size_t>(rows_), valid_ == nullptr ? list_ : 0);
    if (valid_ == nullptr) return;
    for (const std::int32_t row : *valid_) last_list_[static_cast<std::size_t>(row)] = list_;
  }

  std::int64_t rows_;
  const std::vector<std::int32_t>* valid_;
  std::vector<std::int64_t> last_list_;  ///< that held the row; 0: not valid
  std::int64_t list_ = 1;
};

/// Whether runs [begin, end) that come in any order cover [0, rows) once. Costs one look a run.
class Cover {
 public:
  void Start(std::size_t rows) {
    runs_.resize(rows);
    ++cover_;
    count_ = 0;
  }
  /// The run must not be empty and lie within the rows.
  bool Add(std::int32_t begin, std::int32_t end) {
    Run& run = runs_[static_cast<std::size_t>(begin)];
    if (run.cover == cover_) return false;
    run = {cover_, end};
    ++count_;
    return true;
  }
  bool IsWhole() const {
    std::int64_t count = 0;
    std::size_t at = 0;
    while (at < runs_.size() && runs_[at].cover == cover_) {
      at = static_cast<std::size_t>(runs_[at].end);
      ++count;
    }
    return at == runs_.size() && count == count_;
  }

 private:
  struct Run {
    std::uint32_t cover = 0;  ///< small, for the caches: 2^32 blocks of a plan take 100 GB
    std::int32_t end = 0;
  };
  std::vector<Run> runs_;  ///< by their begin
  std::uint32_t cover_ = 0;
  std::int64_t count_ = 0;
};

void CheckSizes(const Plan& plan) {
  const auto sizes = {plan.batch, plan.query_heads, plan.key_heads, plan.queries, plan.keys};
  double heads = 1.0;
  for (const std::int64_t size : {plan.batch, std::max(plan.query_heads, plan.key_heads)}) {
    heads *= static_cast<double>(std::max<std::int64_t>(1, size));
  }
  const auto rows = static_cast<double>(std::max({std::int64_t{1}, plan.queries, plan.keys}));
  Require(std::ranges::all_of(sizes, [](std::int64_t size) { return size >= 0; }) &&
              plan.queries <= kMaxRows && plan.keys <= kMaxRows && heads * rows <= kMaxAllRows &&
              plan.depth >= 1 && plan.depth <= kMaxHeadDimension,
          "sizes", "one is out of range");
  Require(plan.key_heads > 0 ? plan.query_heads % plan.key_heads == 0 : plan.query_heads == 0,
          "sizes", "query heads must be a multiple of key heads");
}

void CheckDials(const Plan& plan) {
  const bool is_lsh = plan.method == Method::kLsh;
  const bool is_tree = plan.method == Method::kTree;
  Require(is_lsh || is_tree || plan.method == Method::kDense, "method and dials",
          "the method must be dense, lsh or tree");
  Require(is_lsh ? plan.n_hashes >= 1 && plan.n_hashes <= kMaxHashes && plan.cluster_size >= 1 &&
                       plan.cluster_size <= kMaxRows
                 : plan.n_hashes == 0 && plan.cluster_size == 0,
          "method and dials", "n_hashes or cluster_size is out of range");
  Require(
      !is_tree || (plan.tolerance >= 0.0 && plan.tolerance < 1.0 &&
                   (!plan.max_density || (*plan.max_density > 0.0 && *plan.max_density <= 1.0))),
      "method and dials", "tolerance or max_density is out of range");
  Require(!plan.window || (plan.window->left >= -1 && plan.window->right >= -1), "masks",
          "a side of the window is below -1");
  Require(plan.method == Method::kDense || !(plan.is_causal || plan.window || plan.has_attn_mask),
          "masks", "methods lsh and tree take padding only");
}

void CheckPadding(const Plan& plan) {
  for (const auto& [lists, rows] :
       {std::pair{&plan.valid_queries, plan.queries}, {&plan.valid_keys, plan.keys}}) {
    Require(lists->empty() || std::ssize(*lists) == plan.batch, "padding lists",
            "there must be one a batch entry, or none");
    for (const std::vector<std::int32_t>& list : *lists) {
      Require(list.empty() || (list.front() >= 0 && list.back() < rows), "padding lists",
              "a row is out of range");
      Require(std::ranges::adjacent_find(list, std::greater_equal<>()) == list.end(),
              "padding lists", "rows must ascend");
    }
  }
}

/// The roots, then each node's children where those of the node before it end: summaries are made
/// from the back, a level at a time.
void CheckNodes(const KeyTree& tree) {
  const auto node_count = std::ssize(tree.nodes);
  Require(IsPart(0, tree.roots, node_count), "key trees", "roots must be nodes");
  std::int64_t next = tree.roots;
  const auto check_cut = [&](std::int64_t first, std::int64_t last, std::int32_t begin,
                             std::int32_t end) {
    for (std::int64_t id = first; id < last; ++id) {
      const Node& node = tree.nodes[static_cast<std::size_t>(id)];
      Require(node.begin == begin && node.begin < node.end, "nodes",
              "roots must cut the keys behind the sinks, children the keys of their parent");
      begin = node.end;
    }
    Require(begin == end, "nodes",
            "roots must cut the keys behind the sinks, children the keys of their parent");
  };
  check_cut(0, tree.roots, tree.sinks, static_cast<std::int32_t>(tree.key_order.size()));
  for (std::int64_t id = 0; id < node_count; ++id) {
    const Node& node = tree.nodes[static_cast<std::size_t>(id)];
    Require(id < next && IsPart(0, node.child_count, node_count - next) &&
                (node.child_count == 0 ? IsPart(0, node.first_child, node_count)
                                       : node.first_child == next),
            "nodes", "children must lie behind those of the node before");
    if (node.child_count > 0) check_cut(next, next + node.child_count, node.begin, node.end);
    next += node.child_count;
  }
  Require(next == node_count, "nodes", "each must be a root or a child");
}

void CheckTree(const Plan& plan, const KeyTree& tree, Permutations& keys) {
  Require(tree.key_order.empty() || keys.Holds(tree.key_order), "key trees",
          "key_order must hold each valid key once");
  Require(IsPart(0, tree.sinks, std::ssize(tree.key_order)), "key trees", "sinks must be keys");
  if (tree.nodes.empty()) return Require(tree.roots == 0, "key trees", "roots must be nodes");
  CheckNodes(tree);
  constexpr std::int64_t kWidth = kernels::kCoordinates;
  Require(std::ssize(tree.query_basis) == plan.depth * kWidth &&
              std::ssize(tree.key_basis) == plan.depth * kWidth &&
              std::ssize(tree.directions) == std::ssize(tree.nodes) * kWidth &&
              std::ssize(tree.profiles) == tree.roots * kWidth,
          "bases", "bases, directions or profiles have another size than depth, nodes or roots");
}

/// Blocks cut the query order from front to back.
void CheckQueries(const HeadPlan& head, Permutations& queries) {
  Require(queries.Holds(head.query_order), "orders", "query_order must hold each valid query once");
  std::int32_t next = 0;
  for (const QueryBlock& block : head.blocks) {
    Require(block.begin == next && block.begin < block.end, "blocks",
            "each query must be in one of them");
    next = block.end;
    Require(IsPart(block.first_range, block.last_range, std::ssize(head.ranges)) &&
                IsPart(block.first_node, block.last_node, std::ssize(head.nodes)),
            "blocks", "a block's lists reach past those of the head");
  }
  Require(next == std::ssize(head.query_order), "blocks", "each query must be in one of them");
}

std::span<const KeyRange> RangesOf(const HeadPlan& head, const QueryBlock& block) {
  return std::span(head.ranges).subspan(block.first_range, block.last_range - block.first_range);
}

/// The ranges of the blocks of `lsh` cut the key order from front to back.
void CheckClusters(const HeadPlan& head, Permutations& keys) {
  Require(keys.Holds(head.key_order), "orders", "key_order must hold each valid key once");
  Require(!head.dense || head.blocks.size() == 1, "blocks", "a dense head has a single cluster");
  std::int32_t next = 0;
  for (const QueryBlock& block : head.blocks) {
    Require(block.first_range < block.last_range && block.first_node == block.last_node, "blocks",
            "a cluster has keys, and no nodes");
    for (const KeyRange& range : RangesOf(head, block)) {
      Require(range.begin == next && range.begin < range.end, "ranges",
              "each key must be in one cluster");
      next = range.end;
    }
  }
  Require(next == std::ssize(head.key_order), "ranges", "each key must be in one cluster");
}

/// Each block of `tree` evaluates every key once, in a range or under a node.
void CheckOpenings(const HeadPlan& head, const KeyTree& tree, Cover& cover) {
  // The bases that queries need lie with the nodes.
  Require(!tree.nodes.empty(), "blocks", "the keys have no nodes");
  constexpr const char* kRule = "each key must be in one range or under one node";
  for (const QueryBlock& block : head.blocks) {
    Require(block.end - block.begin <= kernels::kTreeRows, "blocks", "one has too many queries");
    cover.Start(tree.key_order.size());
    for (const KeyRange& range : RangesOf(head, block)) {
      Require(range.begin < range.end && IsPart(range.begin, range.end, std::ssize(tree.key_order)),
              "ranges", "one is empty or out of range");
      Require(cover.Add(range.begin, range.end), "blocks", kRule);
    }
    for (std::uint32_t i = block.first_node; i < block.last_node; ++i) {
      const std::int32_t id = head.nodes[i];
      Require(id >= 0 && id < std::ssize(tree.nodes), "nodes", "a block has one that is none");
      const Node& node = tree.nodes[static_cast<std::size_t>(id)];
      Require(cover.Add(node.begin, node.end), "blocks", kRule);
    }
    Require(cover.IsWhole(), "blocks", kRule);
  }
}

/// Trees and all rounds of one batch entry.
void CheckEntry(const Plan& plan, std::int64_t b) {
  const bool is_tree = plan.method == Method::kTree;
  const auto list = [&](const std::vector<std::vector<std::int32_t>>& lists) {
    return lists.empty() ? nullptr : &lists[static_cast<std::size_t>(b)];
  };
  Permutations queries(plan.queries, list(plan.valid_queries));
  Permutations keys(plan.keys, list(plan.valid_keys));
  for (std::int64_t g = 0; is_tree && g < plan.key_heads; ++g) {
    CheckTree(plan, plan.key_tree(b, g), keys);
  }
  const bool has_rows = queries.count() > 0 && keys.count() > 0;
  Cover cover;
  for (std::int64_t round = 0; round < plan.rounds(); ++round) {
    for (std::int64_t h = 0; h < plan.query_heads; ++h) {
      const HeadPlan& head = plan.head(round, b, h);
      const HeadPlan& first = plan.head(0, b, h);
      Require(head.dense == first.dense && head.non_finite == first.non_finite, "heads",
              "dense and non_finite must be the same in all rounds");
      Require(!is_tree || !(head.dense && head.non_finite), "heads",
              "one can't be both dense and non_finite");
      const bool is_done = head.non_finite || (head.dense && (is_tree || round > 0));
      Require(head.blocks.empty() == (is_done || !has_rows), "blocks",
              "each query must be in one of them, but in none of a head without valid keys or one "
              "that is dense or non_finite");
      if (head.blocks.empty()) continue;
      CheckQueries(head, queries);
      if (is_tree) {
        const std::int64_t g = h / (plan.query_heads / plan.key_heads);
        CheckOpenings(head, plan.key_tree(b, g), cover);
      } else {
        CheckClusters(head, keys);
      }
    }
  }
}

}  // namespace

void CheckStructure(const Plan& plan) {
  CheckSizes(plan);
  CheckDials(plan);
  CheckPadding(plan);
  const bool is_dense = plan.method == Method::kDense;
  Require(std::ssize(plan.heads) == (is_dense ? 0 : plan.rounds() * plan.batch * plan.query_heads),
          "heads", "their number does not fit method and sizes");
  Require(std::ssize(plan.key_trees) ==
              (plan.method == Method::kTree ? plan.batch * plan.key_heads : 0),
          "key trees", "their number does not fit method and sizes");
  if (is_dense) return;
  for (std::int64_t b = 0; b < plan.batch; ++b) CheckEntry(plan, b);
}

}  // namespace smyrf
