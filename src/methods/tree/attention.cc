#include "methods/tree/attention.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "base/workspace.h"
#include "methods/method.h"
#include "methods/structure.h"
#include "methods/tree/backward.h"
#include "methods/tree/forward.h"
#include "methods/tree/open.h"
#include "methods/tree/planner.h"
#include "run/forward.h"
#include "run/statistics.h"

namespace smyrf {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// What a thread's block lies in.
struct BlockScratch {
  Opening opening;
  std::vector<float> logits;
  std::int64_t bytes() const {
    return kernels::BytesOf(opening.closed, opening.closed_logits, opening.ranges, logits);
  }
};

/// Block i of a head, opened now, in memory of the calling thread until its next call.
TreeBlock OpenedBlock(const Problem& problem, const TreePlanner& planner, std::int64_t b,
                      std::int64_t h, const TreePlanner::Head& head, std::int64_t i) {
  Opening& opening = kernels::OfThread<BlockScratch>().opening;
  const QueryBlock& block = head.plan.blocks[static_cast<std::size_t>(i)];
  const kernels::QueryLanes lanes = BlockLanes(problem, b, h, head.plan, block, planner.forest());
  OpenBlock(planner.nodes(), lanes, head.calibration.threshold, head.calibration.scoring, opening);
  return {lanes, opening.closed, opening.closed_logits.data(), opening.ranges};
}

/// A block of a stored plan, in memory of the calling thread until its next call.
TreeBlock BlockOfPlan(const Problem& problem, const kernels::NodesView& nodes,
                      const KeyForestView& tree, std::int64_t b, std::int64_t h,
                      const HeadView& head, const QueryBlock& block) {
  std::vector<float>& logits = kernels::OfThread<BlockScratch>().logits;
  TreeBlock result;
  result.lanes = BlockLanes(problem, b, h, head, block, tree);
  result.closed = head.nodes.subspan(block.first_node, block.last_node - block.first_node);
  logits.resize(result.closed.size() * static_cast<std::size_t>(kernels::kTreeRows));
  kernels::NodeLogits(nodes, result.lanes, result.closed, logits.data());
  result.closed_logits = logits.data();
  result.ranges = head.ranges.subspan(block.first_range, block.last_range - block.first_range);
  return result;
}

HeadRange OneHead(const Problem& problem, std::int64_t b, std::int64_t h) {
  const std::int64_t head = b * problem.query_heads + h;
  return {head, head + 1};
}

/// Wall seconds of one head.
struct HeadTimes {
  double planning = 0.0;  ///< before its first block
  double whole = 0.0;     ///< planning included
};

/// Of the time of all heads; 0 where it was not measured.
double ShareOfPlanning(const std::vector<HeadTimes>& times) {
  HeadTimes all;
  for (const HeadTimes& head : times) {
    all.planning += head.planning;
    all.whole += head.whole;
  }
  return all.whole > 0.0 ? all.planning / all.whole : 0.0;
}

/// body(i) for every block of a head. Gives the sum of the times that they took, each on its
/// thread, where statistics are asked for.
template <class Body>
double TimedBlocks(const HeadView& head, const Run& run, const Outputs& outputs, const Body& body) {
  std::vector<double> seconds(outputs.statistics != nullptr ? head.blocks.size() : 0);
  ParallelFor(std::ssize(head.blocks), run, [&](std::int64_t i) {
    if (seconds.empty()) return body(i);
    const double start = Now();
    body(i);
    seconds[static_cast<std::size_t>(i)] = Now() - start;
  });
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

/// Of a head whose blocks evaluate so many pairs.
double DensityOf(const std::vector<std::int64_t>& pairs, const HeadView& head,
                 const KeyForestView& tree) {
  const auto sum = std::accumulate(pairs.begin(), pairs.end(), std::int64_t{0});
  return static_cast<double>(sum) / (static_cast<double>(head.query_order.size()) *
                                     static_cast<double>(tree.key_order.size()));
}

}  // namespace

double TreeDensity(const PlanView& plan, std::int64_t batch, std::int64_t head) {
  return plan.head(0, batch, head).dense ? 1.0 : DensityOfBlocks(plan, batch, head);
}

/// Plans everything before anything is written.
double AttendTreePlanned(const Problem& problem, const PlanInfo& info, const Outputs& outputs) {
  const double start = Now();
  PlanParts parts = EmptyParts(problem, info);
  PlanTree(problem, parts);
  const double planning = Now() - start;
  Plan plan = Pack(std::move(parts));
  AttendTreePlan(problem, plan, outputs);
  *outputs.plan = std::move(plan);
  return planning / (Now() - start);
}

double AttendTree(const Problem& problem, const PlanInfo& info, const Outputs& outputs) {
  const bool keep = outputs.plan != nullptr;
  // A plan that is too large to be kept is an error.
  if (keep && !AlwaysFits(problem.queries, problem.keys)) {
    return AttendTreePlanned(problem, info, outputs);
  }
  PlanParts kept;
  if (keep) {
    kept = EmptyParts(problem, info);
    MakeRoomForTrees(problem, kept);
  }
  std::vector<HeadTimes> times(static_cast<std::size_t>(
      outputs.statistics != nullptr ? problem.batch * problem.query_heads : 0));
  ForEachGroup(problem, [&](const HeadGroup& group) {
    const std::int64_t b = group.batch;
    const Run& run = group.run;
    const double start = Now();
    TreePlanner planner(problem, info, b, group.key_head, run);
    const double shared = (Now() - start) / static_cast<double>(group.last_head - group.first_head);
    for (std::int64_t h = group.first_head; h < group.last_head; ++h) {
      const double head_start = Now();
      TreePlanner::Head head = planner.PlanHead(h);
      const double planning = shared + Now() - head_start;
      const HeadOutput output{outputs, b, h};
      const std::size_t blocks = head.plan.blocks.size();
      std::vector<std::int64_t> pairs(blocks);
      std::vector<Opening> openings(keep ? blocks : 0);
      double seconds = 0.0;
      const auto of_head = static_cast<std::size_t>(b * problem.query_heads + h);
      if (head.plan.dense) {
        ForwardDense(problem, OneHead(problem, b, h), run, outputs);
      } else {
        const HeadView view = head.plan;
        FillUncovered(problem, &view, output, run);
        seconds = TimedBlocks(head.plan, run, outputs, [&](std::int64_t i) {
          const auto at = static_cast<std::size_t>(i);
          const TreeBlock block = OpenedBlock(problem, planner, b, h, head, i);
          pairs[at] = block.lanes.rows * block.size();
          ExecuteNodes(planner.nodes(), block, output);
          if (keep) {
            openings[at].closed.assign(block.closed.begin(), block.closed.end());
            openings[at].ranges.assign(block.ranges.begin(), block.ranges.end());
          }
        });
      }
      if (outputs.statistics != nullptr) {
        Statistics::Head& to = outputs.statistics->heads[of_head];
        DescribeHead(head.plan, to);
        to.seconds += seconds;
        to.planning_seconds = planning;
        times[of_head] = {planning, shared + Now() - head_start};
        if (head.plan.non_finite) to.density = 0.0;
        if (blocks > 0) to.density = DensityOf(pairs, head.plan, planner.forest());
      }
      if (keep) {
        StoreOpenings(openings, head.plan);
        kept.heads[of_head] = std::move(head.plan);
      }
    }
    if (keep) {
      kept.forests[static_cast<std::size_t>(b * problem.key_heads + group.key_head)] =
          planner.TakeForest();
    }
  });
  if (keep) *outputs.plan = Pack(std::move(kept));
  return ShareOfPlanning(times);
}

void EstimateTree(const Problem& problem, const PlanInfo& info, Statistics& statistics) {
  ForEachGroup(problem, [&](const HeadGroup& group) {
    const TreePlanner planner(problem, info, group.batch, group.key_head, group.run);
    for (std::int64_t h = group.first_head; h < group.last_head; ++h) {
      const TreePlanner::Head head = planner.PlanHead(h);
      Statistics::Head& to =
          statistics.heads[static_cast<std::size_t>(group.batch * problem.query_heads + h)];
      DescribeHead(head.plan, to);
      if (head.plan.non_finite) to.density = 0.0;
      if (!head.plan.blocks.empty()) to.density = head.calibration.density;
    }
  });
}

void AttendTreePlan(const Problem& problem, const Plan& plan, const Outputs& outputs) {
  ForEachGroup(problem, [&](const HeadGroup& group) {
    const std::int64_t b = group.batch;
    const Run& run = group.run;
    const KeyForestView tree = plan.forest(b, group.key_head);
    std::unique_ptr<Summaries> summaries;
    for (std::int64_t h = group.first_head; h < group.last_head; ++h) {
      const HeadView head = plan.head(0, b, h);
      double seconds = 0.0;
      if (head.dense) {
        ForwardDense(problem, OneHead(problem, b, h), run, outputs);
      } else {
        const HeadOutput output{outputs, b, h};
        FillUncovered(problem, &head, output, run);
        if (!head.blocks.empty() && summaries == nullptr) {
          summaries = std::make_unique<Summaries>(problem, b, group.key_head, tree, run);
        }
        seconds = TimedBlocks(head, run, outputs, [&](std::int64_t i) {
          const QueryBlock& block = head.blocks[static_cast<std::size_t>(i)];
          ExecuteNodes(summaries->view(),
                       BlockOfPlan(problem, summaries->view(), tree, b, h, head, block), output);
        });
      }
      if (outputs.statistics != nullptr) {
        Statistics::Head& to =
            outputs.statistics->heads[static_cast<std::size_t>(b * problem.query_heads + h)];
        DescribeHead(head, to);
        to.density = TreeDensity(plan, b, h);
        to.seconds += seconds;
      }
    }
  });
}

void BackwardTree(const Problem& problem, const PlanInfo& info, const BackwardCall& call) {
  ForEachGroup(problem, [&](const HeadGroup& group) {
    const std::int64_t b = group.batch;
    const TreePlanner planner(problem, info, b, group.key_head, group.run);
    TreeBackward backward(problem, call, b, group.key_head, group.run);
    for (std::int64_t h = group.first_head; h < group.last_head; ++h) {
      const TreePlanner::Head head = planner.PlanHead(h);
      const kernels::NodesView nodes =
          head.plan.blocks.empty() ? kernels::NodesView{} : planner.nodes();
      backward.AddHead(h, head.plan, nodes, planner.forest(), [&](std::int64_t i) {
        return OpenedBlock(problem, planner, b, h, head, i);
      });
    }
    backward.Finish();
  });
}

void BackwardTreePlan(const Problem& problem, const Plan& plan, const BackwardCall& call) {
  ForEachGroup(problem, [&](const HeadGroup& group) {
    const std::int64_t b = group.batch;
    const KeyForestView tree = plan.forest(b, group.key_head);
    TreeBackward backward(problem, call, b, group.key_head, group.run);
    std::unique_ptr<Summaries> summaries;
    for (std::int64_t h = group.first_head; h < group.last_head; ++h) {
      const HeadView head = plan.head(0, b, h);
      if (!head.dense && !head.blocks.empty() && summaries == nullptr) {
        summaries = std::make_unique<Summaries>(problem, b, group.key_head, tree, group.run);
      }
      const kernels::NodesView nodes =
          summaries != nullptr ? summaries->view() : kernels::NodesView{};
      backward.AddHead(h, head, nodes, tree, [&](std::int64_t i) {
        return BlockOfPlan(problem, nodes, tree, b, h, head,
                           head.blocks[static_cast<std::size_t>(i)]);
      });
    }
    backward.Finish();
  });
}

}  // namespace smyrf
