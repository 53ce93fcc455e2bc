#include "methods/tree/structure.h"

#include <cstddef>
#include <cstdint>
#include <span>
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

constexpr const char* kCut =
    "roots must cut a segment's keys behind its sinks, children the keys of their parent";

/// Nodes [first, last) cut keys [begin, end), none of them empty.
void CheckCut(std::span<const Node> nodes, std::int64_t first, std::int64_t last,
              std::int32_t begin, std::int32_t end) {
  for (std::int64_t id = first; id < last; ++id) {
    const Node& node = nodes[static_cast<std::size_t>(id)];
    Require(node.begin == begin && node.begin < node.end, "nodes", kCut);
    begin = node.end;
  }
  Require(begin == end, "nodes", kCut);
}

/// The roots, then each node's children where those of the node before it end: summaries are made
/// from the back, a level at a time.
void CheckNodes(std::span<const Node> nodes, const Segment& segment) {
  const std::int64_t last = segment.last_node;
  Require(IsPart(0, segment.roots, last - segment.first_node), "segments", "roots must be nodes");
  std::int64_t next = std::int64_t{segment.first_node} + segment.roots;
  CheckCut(nodes, segment.first_node, next, segment.begin + segment.sinks, segment.end);
  for (std::int64_t id = segment.first_node; id < last; ++id) {
    const Node& node = nodes[static_cast<std::size_t>(id)];
    Require(
        id < next && IsPart(0, node.child_count, last - next) &&
            (node.child_count == 0 ? IsPart(0, node.first_child, last) : node.first_child == next),
        "nodes", "children must lie behind those of the node before");
    if (node.child_count > 0) {
      CheckCut(nodes, next, next + node.child_count, node.begin, node.end);
    }
    next += node.child_count;
  }
  Require(next == last, "nodes", "each must be a root or a child");
}

/// Segments cut positions, keys and nodes from front to back. Returns the number of all roots.
std::int64_t CheckSegments(const PlanInfo& plan, const KeyForestView& forest) {
  Segment before;
  std::int64_t roots = 0;
  for (const Segment& segment : forest.segments) {
    Require(segment.first_key >= before.last_key &&
                IsPart(segment.first_key, segment.last_key, plan.keys),
            "segments", "their positions must ascend");
    Require(segment.begin == before.end &&
                IsPart(segment.begin, segment.end, std::ssize(forest.key_order)) &&
                segment.first_node == before.last_node &&
                IsPart(segment.first_node, segment.last_node, std::ssize(forest.nodes)),
            "segments", "they must cut the keys and the nodes");
    Require(IsPart(0, segment.sinks, segment.end - segment.begin), "segments",
            "sinks must be keys");
    for (std::int32_t i = segment.begin; i < segment.end; ++i) {
      const std::int32_t key = forest.key_order[static_cast<std::size_t>(i)];
      Require(key >= segment.first_key && key < segment.last_key, "segments",
              "a key lies outside of their positions");
    }
    CheckNodes(forest.nodes, segment);
    roots += segment.roots;
    before = segment;
  }
  Require(
      before.end == std::ssize(forest.key_order) && before.last_node == std::ssize(forest.nodes),
      "segments", "they must cut the keys and the nodes");
  return roots;
}

void CheckForest(const PlanInfo& plan, const KeyForestView& forest, Permutations& keys) {
  Require(forest.key_order.empty() || keys.Holds(forest.key_order), "forests",
          "key_order must hold each valid key once");
  if (forest.segments.empty()) {
    return Require(forest.nodes.empty(), "segments", "they must cut the keys and the nodes");
  }
  const std::int64_t roots = CheckSegments(plan, forest);
  constexpr std::int64_t kWidth = kernels::kCoordinates;
  Require(std::ssize(forest.query_basis) == plan.depth * kWidth &&
              std::ssize(forest.key_basis) == plan.depth * kWidth &&
              std::ssize(forest.directions) == std::ssize(forest.nodes) * kWidth &&
              std::ssize(forest.profiles) == roots * kWidth,
          "bases", "bases, directions or profiles have another size than depth, nodes or roots");
}

/// Each block evaluates every key once, in a range or under a node.
void CheckOpenings(const HeadView& head, const KeyForestView& tree, Cover& cover) {
  // The bases that queries need lie with the segments.
  Require(!tree.segments.empty() && !tree.key_order.empty(), "blocks", "the keys have no segments");
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
      CheckForest(info, plan.forest(b, g), rows.keys);
    }
    Cover cover;
    for (std::int64_t h = 0; h < info.query_heads; ++h) {
      const HeadView head = plan.head(0, b, h);
      Require(!(head.dense && head.non_finite), "heads", "one can't be both dense and non_finite");
      CheckBlocks(head, head.dense || head.non_finite, rows);
      if (head.blocks.empty()) continue;
      CheckOpenings(head, plan.forest(b, h / (info.query_heads / info.key_heads)), cover);
    }
  });
}

}  // namespace smyrf
