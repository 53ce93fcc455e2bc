// Validates and dispatches: the one place where calls, planners and executors meet.
#include "smyrf/attention.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <utility>

#include "execute/forward.h"
#include "execute/reference.h"
#include "kernels/kernels.h"
#include "message.h"
#include "plan/lsh.h"
#include "validate.h"

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
  return made;
}

/// The rounds from 0 on.
void FillStatistics(const Plan& plan, Statistics& statistics) {
  statistics.method = plan.method;
  statistics.reason = plan.reason;
  statistics.batch = plan.batch;
  statistics.query_heads = plan.query_heads;
  statistics.instruction_set = kernels::InstructionSet();
  statistics.heads.assign(static_cast<std::size_t>(plan.batch * plan.query_heads), {});
  std::int64_t dense_heads = 0;
  for (std::int64_t b = 0; b < plan.batch; ++b) {
    for (std::int64_t h = 0; h < plan.query_heads; ++h) {
      auto& head = statistics.heads[static_cast<std::size_t>(b * plan.query_heads + h)];
      head.density = plan.density(b, h);
      if (plan.method == Method::kLsh) {
        head.dense = plan.head(0, b, h).dense;
        head.non_finite = plan.head(0, b, h).non_finite;
        dense_heads += head.dense ? 1 : 0;
      }
    }
  }
  if (dense_heads > 0) {
    statistics.reason += Message("; ", dense_heads, " of ", statistics.heads.size(),
                                 " heads have a single cluster: done as dense, once");
  }
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
  const Problem problem = CheckProblem(arguments, WithPlan(options, plan), true);
  if (plan != nullptr) CheckPlan(*plan, arguments, options, problem);
  CheckOutputs(outputs, problem);
  const auto start = std::chrono::steady_clock::now();
  double planning = 0.0;
  Plan made;
  if (plan == nullptr) made = CheckMethod(arguments, options, problem);
  const std::int64_t rounds = plan != nullptr ? plan->rounds() : made.rounds();
  const auto plan_of_rounds = [&](std::int64_t first_round) -> const Plan& {
    const auto planning_start = std::chrono::steady_clock::now();
    if (plan == nullptr && made.method == Method::kLsh) {
      PlanLsh(problem, first_round, std::min(RoundsAtOnce(problem), rounds - first_round), made);
      planning += SecondsSince(planning_start);
    }
    const Plan& current = plan != nullptr ? *plan : made;
    if (outputs.statistics != nullptr) {
      first_round == 0 ? FillStatistics(current, *outputs.statistics)
                       : AddDensity(current, *outputs.statistics);
    }
    return current;
  };
  ExecuteForward(problem, rounds, plan_of_rounds, outputs);
  if (outputs.statistics != nullptr) {
    outputs.statistics->planning_seconds = planning;
    outputs.statistics->execution_seconds = SecondsSince(start) - planning;
  }
}

Plan plan(const Arguments& arguments, const Options& options) {
  const Problem problem = CheckProblem(arguments, options, false);
  return MakePlan(arguments, options, problem);
}

void reference(const Arguments& arguments, const Options& options, double* out, double* lse,
               const Plan* plan) {
  const Problem problem = CheckProblem(arguments, WithPlan(options, plan), true);
  if (plan != nullptr) {
    CheckPlan(*plan, arguments, options, problem);
    return ExecuteReference(problem, *plan, out, lse);
  }
  ExecuteReference(problem, MakePlan(arguments, options, problem), out, lse);
}

std::vector<std::string> instruction_sets() { return kernels::InstructionSets(); }

void force_instruction_set(const std::string& name) {
  if (kernels::ForceInstructionSet(name)) return;
  std::string accepted;
  for (const std::string& known : instruction_sets()) accepted += " " + known;
  Fail(ErrorKind::kValue, "instruction set: got ", name, ", this machine has", accepted);
}

}  // namespace smyrf
