// Validates and dispatches: the one place where calls, planners and executors meet.
#include "smyrf/attention.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <utility>

#include "base/float_environment.h"
#include "base/message.h"
#include "base/workspace.h"
#include "call/check.h"
#include "call/statistics.h"
#include "methods/lsh/planner.h"
#include "methods/tree/attention.h"
#include "methods/tree/planner.h"
#include "reference/reference.h"
#include "run/backward.h"
#include "run/forward.h"
#include "run/merge.h"
#include "simd/kernels.h"

namespace smyrf {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The plan's causality and window are the call's: the mask is built from them.
Options WithPlan(Options options, const Plan* plan) {
  if (plan != nullptr && !options.is_causal) options.is_causal = plan->is_causal;
  if (plan != nullptr && !options.window) options.window = plan->window;
  return options;
}

Plan MakePlan(const Arguments& arguments, const Options& options, const Problem& problem) {
  Plan made = CheckMethod(arguments, options, problem);
  if (made.method == Method::kLsh) PlanLsh(problem, 0, made.n_hashes, made);
  if (made.method == Method::kTree) PlanTree(problem, made);
  return made;
}

/// Rounds of `lsh` that are planned together. Without rows there is nothing to plan more than once
/// for.
std::int64_t PlannedAtOnce(const Problem& problem, const Plan& made) {
  if (made.method != Method::kLsh || problem.queries * problem.keys == 0) return 1;
  return RoundsAtOnce(problem, made.cluster_size);
}

/// What drops the pairs of a plan's call: its seed, if it has one.
Dropout DropoutOf(const Options& options, const Plan& plan) {
  return {options.dropout_p, plan.method == Method::kLsh ? plan.seed : options.seed};
}

/// body(problem, plan) of a checked call, with the plan given or one made for it.
template <class Body>
void WithWholePlan(const Arguments& arguments, const Options& options, const Plan* plan,
                   const Body& body) {
  const FloatEnvironment environment;
  const WorkspaceUse use(options.workspace);
  Problem problem = CheckProblem(arguments, WithPlan(options, plan), true);
  if (plan != nullptr) CheckPlan(*plan, arguments, options, problem);
  const Plan made = plan == nullptr ? MakePlan(arguments, options, problem) : Plan{};
  const Plan& current = plan != nullptr ? *plan : made;
  problem.dropout = DropoutOf(options, current);
  body(problem, current);
}

/// The rounds from 0 on.
void FillStatistics(const Plan& plan, Statistics& statistics) {
  statistics.method = plan.method;
  statistics.reason = plan.reason;
  statistics.batch = plan.batch;
  statistics.query_heads = plan.query_heads;
  statistics.instruction_set = kernels::InstructionSet();
  statistics.heads.assign(static_cast<std::size_t>(plan.batch * plan.query_heads), {});
  for (std::int64_t b = 0; b < plan.batch; ++b) {
    for (std::int64_t h = 0; h < plan.query_heads; ++h) {
      auto& head = statistics.heads[static_cast<std::size_t>(b * plan.query_heads + h)];
      head.density = plan.density(b, h);
      if (!plan.heads.empty()) DescribeHead(plan.head(0, b, h), head);
    }
  }
}

/// Why heads went dense, appended to the reason.
void CountDenseHeads(Statistics& statistics) {
  const auto dense = std::count_if(statistics.heads.begin(), statistics.heads.end(),
                                   [](const Statistics::Head& head) { return head.dense; });
  if (dense == 0) return;
  statistics.reason +=
      Message("; ", dense, " of ", statistics.heads.size(), " heads done as dense: ",
              statistics.method == Method::kLsh ? "a single cluster"
                                                : "few valid rows, expected to cost no more, or "
                                                  "no threshold meets the tolerance");
}

/// Later rounds only add pairs.
void AddDensity(const Plan& plan, Statistics& statistics) {
  for (std::int64_t b = 0; b < plan.batch; ++b) {
    for (std::int64_t h = 0; h < plan.query_heads; ++h) {
      if (plan.head(0, b, h).blocks.empty()) continue;
      statistics.heads[static_cast<std::size_t>(b * plan.query_heads + h)].density +=
          plan.density(b, h);
    }
  }
}

}  // namespace

void attention(const Arguments& arguments, const Options& options, const Outputs& outputs,
               const Plan* plan) {
  const FloatEnvironment environment;
  const WorkspaceUse use(options.workspace);
  Problem problem = CheckProblem(arguments, WithPlan(options, plan), true);
  if (plan != nullptr) CheckPlan(*plan, arguments, options, problem);
  CheckOutputs(outputs, problem);
  const auto start = std::chrono::steady_clock::now();
  double planning = 0.0;
  double planning_share = 0.0;  // of the whole: `tree` plans and carries out head by head
  Plan made;
  if (plan == nullptr) made = CheckMethod(arguments, options, problem);
  const Plan& current = plan != nullptr ? *plan : made;
  problem.dropout = DropoutOf(options, current);
  const std::int64_t rounds = current.rounds();
  const bool keep_plan = outputs.plan != nullptr && plan == nullptr;
  const std::int64_t at_once = keep_plan ? rounds : PlannedAtOnce(problem, made);
  const auto plan_of_rounds = [&](std::int64_t first_round) -> const Plan& {
    const auto planning_start = std::chrono::steady_clock::now();
    if (plan == nullptr && made.method == Method::kLsh) {
      PlanLsh(problem, first_round, std::min(at_once, rounds - first_round), made);
      planning += SecondsSince(planning_start);
    }
    if (outputs.statistics != nullptr) {
      first_round == 0 ? FillStatistics(current, *outputs.statistics)
                       : AddDensity(current, *outputs.statistics);
    }
    return current;
  };
  if (current.method == Method::kTree) {
    if (outputs.statistics != nullptr) FillStatistics(current, *outputs.statistics);
    if (plan != nullptr) {
      AttendTreePlan(problem, *plan, outputs);
    } else {
      planning_share = AttendTree(problem, made, outputs);
    }
  } else {
    ExecuteForward(problem, rounds, plan_of_rounds, outputs);
  }
  if (outputs.statistics != nullptr) {
    CountDenseHeads(*outputs.statistics);
    const double all = SecondsSince(start);
    if (made.method == Method::kTree) planning = all * planning_share;
    outputs.statistics->planning_seconds = planning;
    outputs.statistics->execution_seconds = all - planning;
  }
  if (keep_plan && made.method != Method::kTree) *outputs.plan = std::move(made);
}

void attention_backward(const Arguments& arguments, const Options& options, const TensorView& out,
                        const TensorView& lse, const TensorView& grad_out,
                        const std::optional<TensorView>& grad_lse, const Gradients& gradients,
                        const Plan* plan) {
  const FloatEnvironment environment;
  const WorkspaceUse use(options.workspace);
  Problem problem = CheckProblem(arguments, WithPlan(options, plan), true);
  if (plan != nullptr) CheckPlan(*plan, arguments, options, problem);
  CheckBackward(out, lse, grad_out, grad_lse, gradients, problem);
  Plan made;
  if (plan == nullptr) made = CheckMethod(arguments, options, problem);
  const Plan& current = plan != nullptr ? *plan : made;
  problem.dropout = DropoutOf(options, current);
  const BackwardCall call{out, grad_out, static_cast<const float*>(lse.data),
                          grad_lse ? static_cast<const float*>(grad_lse->data) : nullptr,
                          gradients};
  // Without query heads there is nothing but zeros to write.
  if (current.method == Method::kTree && problem.query_heads > 0) {
    return plan != nullptr ? BackwardTreePlan(problem, *plan, call)
                           : BackwardTree(problem, made, call);
  }
  const std::int64_t rounds = current.rounds();
  const std::int64_t at_once = PlannedAtOnce(problem, made);
  ExecuteBackward(
      problem, rounds,
      [&](std::int64_t first_round) -> const Plan& {
        if (made.method == Method::kLsh) {
          PlanLsh(problem, first_round, std::min(at_once, rounds - first_round), made);
        }
        return current;
      },
      call);
}

Plan plan(const Arguments& arguments, const Options& options) {
  const FloatEnvironment environment;
  const WorkspaceUse use(options.workspace);
  const bool needs_value = options.method == Method::kTree;
  const bool with_value =
      needs_value || (options.method == Method::kAuto && arguments.value.rank != 0);
  if (needs_value && arguments.value.rank == 0) {
    Fail(ErrorKind::kValue, "value: method tree plans by the values' spread too; pass value");
  }
  const Problem problem = CheckProblem(arguments, options, with_value);
  return MakePlan(arguments, options, problem);
}

Statistics estimate(const Arguments& arguments, const Options& options) {
  const FloatEnvironment environment;
  const WorkspaceUse use(options.workspace);
  const Problem problem = CheckProblem(arguments, options, true);
  const auto start = std::chrono::steady_clock::now();
  const Plan plan = CheckMethod(arguments, options, problem);
  if (plan.method == Method::kLsh) {
    Fail(ErrorKind::kUnsupported,
         "estimate: method lsh has no estimate of its error; use method='tree' or 'auto', or count "
         "pairs with plan(...).density");
  }
  Statistics statistics;
  FillStatistics(plan, statistics);
  if (plan.method == Method::kTree) EstimateTree(problem, plan, statistics);
  CountDenseHeads(statistics);
  statistics.planning_seconds = SecondsSince(start);
  return statistics;
}

void merge(const MutableTensorView& out, const MutableTensorView& lse, const TensorView& other_out,
           const TensorView& other_lse, int num_threads, ThreadPool* thread_pool) {
  const FloatEnvironment environment;
  CheckMerge(out, lse, other_out, other_lse, num_threads);
  ExecuteMerge(out, lse, other_out, other_lse, Run(num_threads, thread_pool));
}

void reference(const Arguments& arguments, const Options& options, double* out, double* lse,
               const Plan* plan) {
  WithWholePlan(arguments, options, plan, [&](const Problem& problem, const Plan& current) {
    ExecuteReference(problem, current, out, lse);
  });
}

void reference_backward(const Arguments& arguments, const Options& options,
                        const TensorView& grad_out, const std::optional<TensorView>& grad_lse,
                        double* grad_query, double* grad_key, double* grad_value,
                        const Plan* plan) {
  WithWholePlan(arguments, options, plan, [&](const Problem& problem, const Plan& current) {
    ExecuteReferenceBackward(problem, current, grad_out,
                             grad_lse ? static_cast<const float*>(grad_lse->data) : nullptr,
                             grad_query, grad_key, grad_value);
  });
}

std::vector<std::string> instruction_sets() { return kernels::InstructionSets(); }

void force_instruction_set(const std::string& name) {
  if (kernels::ForceInstructionSet(name)) return;
  std::string accepted;
  for (const std::string& known : instruction_sets()) accepted += " " + known;
  Fail(ErrorKind::kValue, "instruction set: got ", name, ", this machine has", accepted);
}

}  // namespace smyrf
