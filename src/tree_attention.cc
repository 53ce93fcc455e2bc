#include "tree_attention.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "execute/tree.h"
#include "kernels/parallel.h"
#include "plan/open.h"
#include "plan/tree.h"

namespace smyrf {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// body(batch, key head, threads inside): whole groups side by side where there are enough of them.
template <class Body>
void ForEachGroup(const Problem& problem, const Body& body) {
  const int threads = problem.num_threads > 0 ? problem.num_threads : DefaultThreads();
  const std::int64_t groups = problem.batch * problem.key_heads;
  const bool over_groups = groups >= std::int64_t{2} * threads;
  ParallelFor(groups, over_groups ? threads : 1, [&](std::int64_t i) {
    body(i / problem.key_heads, i % problem.key_heads, over_groups ? 1 : threads);
  });
}

/// What no block writes: padded queries, and all rows of a head without blocks that is not dense.
void FillUncovered(const Problem& problem, const Plan& plan, const HeadPlan& head,
                   const HeadOutput& output) {
  const bool whole = head.blocks.empty();
  if (!whole && plan.valid_queries.empty()) return;
  std::vector<char> valid(static_cast<std::size_t>(problem.queries),
                          plan.valid_queries.empty() ? 1 : 0);
  if (!plan.valid_queries.empty()) {
    for (const std::int32_t i : plan.valid_queries[static_cast<std::size_t>(output.batch)]) {
      valid[static_cast<std::size_t>(i)] = 1;
    }
  }
  for (std::int64_t i = 0; i < problem.queries; ++i) {
    const bool is_valid = valid[static_cast<std::size_t>(i)] != 0;
    if (whole || !is_valid) output.Fill(i, is_valid && head.non_finite);
  }
}

std::span<const std::int32_t> Positions(const HeadPlan& head, const QueryBlock& block) {
  return std::span(head.query_order)
      .subspan(static_cast<std::size_t>(block.begin),
               static_cast<std::size_t>(block.end - block.begin));
}

}  // namespace

void AttendTree(const Problem& problem, const Plan& header, const Outputs& outputs) {
  const std::int64_t group_heads =
      problem.key_heads > 0 ? problem.query_heads / problem.key_heads : 0;
  ForEachGroup(problem, [&](std::int64_t b, std::int64_t g, int threads) {
    const double start = Now();
    const TreePlanner planner(problem, header, b, g, threads);
    const double shared = (Now() - start) / static_cast<double>(group_heads);
    for (std::int64_t h = g * group_heads; h < (g + 1) * group_heads; ++h) {
      const double head_start = Now();
      const TreePlanner::Head head = planner.PlanHead(h);
      const double planning = shared + Now() - head_start;
      const HeadOutput output{outputs, b, h};
      const std::size_t blocks = head.plan.blocks.size();
      std::vector<std::int64_t> pairs(blocks);
      if (head.plan.dense) {
        ExecuteDenseHead(problem, header, b, h, threads, outputs);
      } else {
        FillUncovered(problem, header, head.plan, output);
        const kernels::NodesView nodes = blocks > 0 ? planner.nodes() : kernels::NodesView{};
        ParallelFor(static_cast<std::int64_t>(blocks), threads, [&](std::int64_t i) {
          thread_local Opening opening;
          const QueryBlock& block = head.plan.blocks[static_cast<std::size_t>(i)];
          const kernels::QueryLanes lanes = planner.Lanes(h, head.plan, block);
          OpenBlock(nodes, lanes, head.threshold, head.mass_weight, opening);
          pairs[static_cast<std::size_t>(i)] =
              (block.end - block.begin) *
              (opening.exact_keys() + static_cast<std::int64_t>(opening.closed.size()));
          ExecuteNodes(nodes, lanes, opening.closed, opening.closed_logits.data(), opening.ranges,
                       Positions(head.plan, block), output);
        });
      }
      if (outputs.statistics == nullptr) continue;
      Statistics::Head& to =
          outputs.statistics->heads[static_cast<std::size_t>(b * problem.query_heads + h)];
      to.dense = head.plan.dense;
      to.non_finite = head.plan.non_finite;
      to.expected_error = head.plan.expected_error;
      to.expected_lse_error = head.plan.expected_lse_error;
      to.seconds = shared + Now() - head_start;
      to.planning_seconds = planning;
      std::int64_t all = 0;
      for (const std::int64_t count : pairs) all += count;
      if (head.plan.non_finite) to.density = 0.0;
      if (blocks > 0) {
        to.density =
            static_cast<double>(all) / (static_cast<double>(head.plan.query_order.size()) *
                                        static_cast<double>(planner.key_tree().key_order.size()));
      }
    }
  });
}

void AttendTreePlan(const Problem& problem, const Plan& plan, const Outputs& outputs) {
  const std::int64_t group_heads =
      problem.key_heads > 0 ? problem.query_heads / problem.key_heads : 0;
  ForEachGroup(problem, [&](std::int64_t b, std::int64_t g, int threads) {
    const KeyTree& tree = plan.key_tree(b, g);
    std::unique_ptr<Summaries> summaries;
    for (std::int64_t h = g * group_heads; h < (g + 1) * group_heads; ++h) {
      const double start = Now();
      const HeadPlan& head = plan.head(0, b, h);
      if (head.dense) {
        ExecuteDenseHead(problem, plan, b, h, threads, outputs);
      } else {
        const HeadOutput output{outputs, b, h};
        FillUncovered(problem, plan, head, output);
        if (!head.blocks.empty() && summaries == nullptr) {
          summaries = std::make_unique<Summaries>(problem, b, g, tree, threads);
        }
        ParallelFor(std::ssize(head.blocks), threads, [&](std::int64_t i) {
          thread_local std::vector<float> logits;
          const kernels::NodesView nodes = summaries->view();
          const QueryBlock& block = head.blocks[static_cast<std::size_t>(i)];
          const kernels::QueryLanes lanes = kernels::LoadLanes(
              kernels::RowsOf(problem.query, b, h, head.query_order), block.begin, block.end,
              problem.depth, problem.scale, tree.query_basis.data());
          const auto closed =
              std::span(head.nodes).subspan(block.first_node, block.last_node - block.first_node);
          logits.resize(closed.size() * static_cast<std::size_t>(kernels::kTreeRows));
          kernels::NodeLogits(nodes, lanes, closed, logits.data());
          const auto ranges = std::span(head.ranges)
                                  .subspan(block.first_range, block.last_range - block.first_range);
          ExecuteNodes(nodes, lanes, closed, logits.data(), ranges, Positions(head, block), output);
        });
      }
      if (outputs.statistics != nullptr) {
        outputs.statistics->heads[static_cast<std::size_t>(b * problem.query_heads + h)].seconds =
            Now() - start;
      }
    }
  });
}

}  // namespace smyrf
