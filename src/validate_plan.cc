// Whether a plan fits a call, and holds together.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/nodes.h"
#include "message.h"
#include "validate.h"

namespace smyrf {
namespace {

/// Throws unless every index of the plan is within what it points into: executors check nothing.
void CheckStructure(const Plan& plan) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) Fail(ErrorKind::kValue, "plan: its ", what, " are damaged; make it with plan()");
  };
  const auto within = [](const std::vector<std::int32_t>& indices, std::int64_t size) {
    return std::all_of(indices.begin(), indices.end(),
                       [size](std::int32_t i) { return i >= 0 && i < size; });
  };
  const auto part = [](std::int64_t begin, std::int64_t end, std::size_t size) {
    return begin >= 0 && begin <= end && end <= static_cast<std::int64_t>(size);
  };
  for (const auto& [lists, size] :
       {std::pair{&plan.valid_queries, plan.queries}, {&plan.valid_keys, plan.keys}}) {
    require(lists->empty() || std::ssize(*lists) == plan.batch, "padding lists");
    for (const auto& list : *lists) {
      require(within(list, size) && std::is_sorted(list.begin(), list.end()), "padding lists");
    }
  }
  require(
      plan.method == Method::kDense || plan.method == Method::kLsh || plan.method == Method::kTree,
      "method and dials");
  if (plan.method == Method::kDense) return require(plan.heads.empty(), "heads");
  const bool is_tree = plan.method == Method::kTree;
  require(plan.n_hashes >= 0 && plan.n_hashes <= kMaxHashes, "method and dials");
  require(
      std::ssize(plan.heads) == plan.rounds() * plan.batch * plan.query_heads && plan.rounds() > 0,
      "heads");
  require(!is_tree || std::ssize(plan.key_trees) == plan.batch * plan.key_heads, "key trees");
  for (const KeyTree& tree : plan.key_trees) {
    require(within(tree.key_order, plan.keys) && part(0, tree.sinks, tree.key_order.size()) &&
                part(0, tree.roots, tree.nodes.size()),
            "key trees");
    const auto basis = static_cast<std::size_t>(plan.depth * kernels::kCoordinates);
    require(tree.nodes.empty() ||
                (tree.query_basis.size() == basis && tree.key_basis.size() == basis &&
                 std::ssize(tree.directions) == std::ssize(tree.nodes) * kernels::kCoordinates &&
                 std::ssize(tree.profiles) == tree.roots * kernels::kCoordinates),
            "bases");
    // Summaries are made from the back, a level at a time: the roots, then each node's children
    // where those of the node before it end.
    std::int64_t next = tree.roots;
    for (std::size_t id = 0; id < tree.nodes.size(); ++id) {
      const Node& node = tree.nodes[id];
      require(node.begin < node.end && part(node.begin, node.end, tree.key_order.size()) &&
                  static_cast<std::int64_t>(id) < next && node.child_count >= 0 &&
                  (node.child_count == 0 || node.first_child == next),
              "nodes");
      next += node.child_count;
    }
    require(next == std::ssize(tree.nodes), "nodes");
  }
  for (std::size_t i = 0; i < plan.heads.size(); ++i) {
    const HeadPlan& head = plan.heads[i];
    const auto index = static_cast<std::int64_t>(i);
    const KeyTree* tree =
        is_tree ? &plan.key_tree(index / plan.query_heads,
                                 index % plan.query_heads / (plan.query_heads / plan.key_heads))
                : nullptr;
    const std::size_t keys = is_tree ? tree->key_order.size() : head.key_order.size();
    require(within(head.query_order, plan.queries) && within(head.key_order, plan.keys), "orders");
    require(within(head.nodes, is_tree ? std::ssize(tree->nodes) : 0), "nodes");
    require(!is_tree || head.blocks.empty() || !tree->nodes.empty(), "blocks");  // need its bases
    for (const KeyRange& range : head.ranges) require(part(range.begin, range.end, keys), "ranges");
    for (const QueryBlock& block : head.blocks) {
      require(part(block.begin, block.end, head.query_order.size()) &&
                  part(block.first_range, block.last_range, head.ranges.size()) &&
                  part(block.first_node, block.last_node, head.nodes.size()) &&
                  (!is_tree || block.end - block.begin <= kernels::kTreeRows),
              "blocks");
    }
  }
}

}  // namespace

void CheckPlan(const Plan& plan, const Arguments& arguments, const Options& options,
               const Problem& problem) {
  const auto differs = [](const char* name, const auto& given, const auto& planned) {
    if (given != planned) {
      Fail(ErrorKind::kValue, "plan: was made for ", name, " = ", planned, ", this call has ",
           given, "; make a plan for this call");
    }
  };
  differs("batch", problem.batch, plan.batch);
  differs("query heads", problem.query_heads, plan.query_heads);
  differs("key heads", problem.key_heads, plan.key_heads);
  differs("Nq", problem.queries, plan.queries);
  differs("Nk", problem.keys, plan.keys);
  differs("D", problem.depth, plan.depth);
  CheckStructure(plan);

  const auto conflict = [](const char* name) {
    Fail(ErrorKind::kValue, name,
         ": differs from the plan's, which decides; leave it out or make a new plan");
  };
  if (options.method != Method::kAuto && options.method != plan.method) conflict("method");
  if (options.n_hashes && *options.n_hashes != plan.n_hashes) conflict("n_hashes");
  if (options.cluster_size && *options.cluster_size != plan.cluster_size) conflict("cluster_size");
  CheckTolerance(options);
  // As in a call that makes its own plan: where auto took dense, these are not used.
  const bool unused = plan.method == Method::kDense && options.method == Method::kAuto;
  const bool of_dropout = plan.method == Method::kDense && options.dropout_p > 0.0;
  if (!unused && !of_dropout && options.seed != 0 && options.seed != plan.seed) conflict("seed");
  if (!unused && options.tolerance && *options.tolerance != plan.tolerance) conflict("tolerance");
  if (options.max_density && options.max_density != plan.max_density) conflict("max_density");
  if (options.is_causal && !plan.is_causal) conflict("is_causal");
  if (options.window && (!plan.window || options.window->left != plan.window->left ||
                         options.window->right != plan.window->right)) {
    conflict("window");
  }
  if (arguments.query_padding_mask && ValidRows(arguments.query_padding_mask, problem.batch,
                                                problem.queries) != plan.valid_queries) {
    conflict("query_padding_mask");
  }
  if (arguments.key_padding_mask &&
      ValidRows(arguments.key_padding_mask, problem.batch, problem.keys) != plan.valid_keys) {
    conflict("key_padding_mask");
  }
  if (plan.method != Method::kDense && arguments.attn_mask) {
    Fail(ErrorKind::kUnsupported, "attn_mask: the plan's method ", Name(plan.method),
         " takes padding masks only; use a dense plan");
  }
  if (plan.has_attn_mask != arguments.attn_mask.has_value()) {
    Fail(ErrorKind::kValue, "attn_mask: the plan was made ",
         plan.has_attn_mask ? "with" : "without",
         " one, which it does not hold; pass it to both calls or to neither");
  }
  if (plan.method == Method::kTree) CheckNoDropout(options);
  if (plan.method == Method::kTree) differs("scale", problem.scale, plan.scale);
  if (plan.method == Method::kLsh && problem.scale <= 0.0) {
    Fail(ErrorKind::kValue, "scale: got ", problem.scale,
         ", the plan's method lsh needs a scale above 0");
  }
}

}  // namespace smyrf
