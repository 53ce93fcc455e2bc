#include "methods/tree/structure.h"

#include <cstddef>
#include <cstdint>
#include <vector>

#include "methods/structure.h"
#include "methods/tree/kernels/nodes.h"

namespace smyrf {
namespace {

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

/// The roots, then each node's children where those of the node before it end: summaries are made
/// from the back, a level at a time.
void CheckNodes(const KeyTreeView& tree) {
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

void CheckTree(const PlanInfo& plan, const KeyTreeView& tree, Permutations& keys) {
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

/// Each block evaluates every key once, in a range or under a node.
void CheckOpenings(const HeadView& head, const KeyTreeView& tree, Cover& cover) {
  // The bases that queries need lie with the nodes.
  Require(!tree.nodes.empty(), "blocks", "the keys have no nodes");
  constexpr const char* kRule = "each key must be in one range or under one node";
  for (const QueryBlock& block : head.blocks) {
    Require(block.end - block.begin <= kernels::kTreeRows, "blocks", "one has too many queries");
    cover.Start(tree.key_order.size());
    for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
      const KeyRange& range = head.ranges[r];
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

}  // namespace

void CheckTrees(const PlanView& plan) {
  const PlanInfo& info = plan.info();
  RequireCounts(plan, info.batch * info.query_heads, info.batch * info.key_heads);
  ForEachEntry(plan, [&](std::int64_t b, EntryRows& rows) {
    for (std::int64_t g = 0; g < info.key_heads; ++g) {
      CheckTree(info, plan.key_tree(b, g), rows.keys);
    }
    Cover cover;
    for (std::int64_t h = 0; h < info.query_heads; ++h) {
      const HeadView head = plan.head(0, b, h);
      Require(!(head.dense && head.non_finite), "heads", "one can't be both dense and non_finite");
      CheckBlocks(head, head.dense || head.non_finite, rows);
      if (head.blocks.empty()) continue;
      CheckOpenings(head, plan.key_tree(b, h / (info.query_heads / info.key_heads)), cover);
    }
  });
}

}  // namespace smyrf
