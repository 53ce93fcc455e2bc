// Validates and dispatches: the one place where calls and methods meet.
#include "smyrf/attention.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <utility>

#include "base/float_environment.h"
#include "base/message.h"
#include "base/workspace.h"
#include "call/check.h"
#include "methods/method.h"
#include "reference/reference.h"
#include "run/merge.h"
#include "simd/kernels.h"

namespace smyrf {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What drops the pairs of a plan's call: its seed, if its method has one.
Dropout DropoutOf(const Options& options, const AttentionMethod& method, const PlanInfo& plan) {
  return {options.dropout_p, method.info().takes_seed ? plan.seed : options.seed,
          plan.positions.value_or(Positions{})};
}

/// What the plan says holds, be it given or as the method set it.
void ApplyPlan(const PlanInfo& plan, Problem& problem) {
  problem.mask = Mask(problem.queries, problem.keys, plan.is_causal, plan.window, problem.mask.bias,
                      plan.positions);
  problem.narrowing = {plan.precision, plan.precision_error};
}

/// A checked call, whose method is known.
struct CheckedCall {
  Problem problem;
  const AttentionMethod* method = nullptr;
  PlanInfo made;               ///< where no plan is given
  const Plan* plan = nullptr;  ///< that is given

  CheckedCall(const Arguments& arguments, const Options& options, const Plan* given)
      : problem(CheckProblem(arguments, options, true)), plan(given) {
    method = given != nullptr ? &CheckPlan(*given, arguments, options, problem)
                              : &CheckMethod({arguments, options, problem}, made);
    ApplyPlan(info(), problem);
    problem.dropout = DropoutOf(options, *method, info());
  }

  const PlanInfo& info() const { return plan != nullptr ? plan->info() : made; }

  /// The plan given, or one made now.
  Plan WholePlan() const {
    if (plan != nullptr) return *plan;
    PlanParts parts = EmptyParts(problem, made);
    method->MakePlan(problem, parts);
    return Pack(std::move(parts));
  }
};

/// All but what the method tells of its heads.
void StartStatistics(const PlanInfo& plan, Statistics& statistics) {
  statistics = {};
  statistics.method = plan.method;
  statistics.reason = plan.reason;
  statistics.batch = plan.batch;
  statistics.query_heads = plan.query_heads;
  statistics.instruction_set = kernels::InstructionSet();
  statistics.heads.assign(static_cast<std::size_t>(plan.batch * plan.query_heads), {});
}

/// Why heads went dense, appended to the reason.
void CountDenseHeads(const AttentionMethod& method, Statistics& statistics) {
  const auto dense = std::count_if(statistics.heads.begin(), statistics.heads.end(),
                                   [](const Statistics::Head& head) { return head.dense; });
  if (dense == 0) return;
  statistics.reason += Message("; ", dense, " of ", statistics.heads.size(),
                               " heads done as dense: ", method.WhyDense());
}

}  // namespace

void attention(const Arguments& arguments, const Options& options, const Outputs& outputs,
               const Plan* plan) {
  const FloatEnvironment environment;
  const WorkspaceUse use(options.workspace);
  const CheckedCall call(arguments, options, plan);
  CheckOutputs(outputs, call.problem);
  Statistics* const statistics = outputs.statistics;
  const auto start = std::chrono::steady_clock::now();
  if (statistics != nullptr) StartStatistics(call.info(), *statistics);
  const double planning = call.method->Forward(call.problem, call.info(), plan, outputs);
  if (statistics == nullptr) return;
  CountDenseHeads(*call.method, *statistics);
  statistics->planning_seconds = planning;
  statistics->execution_seconds = SecondsSince(start) - planning;
}

void attention_backward(const Arguments& arguments, const Options& options, const TensorView& out,
                        const TensorView& lse, const TensorView& grad_out,
                        const std::optional<TensorView>& grad_lse, const Gradients& gradients,
                        const Plan* plan) {
  const FloatEnvironment environment;
  const WorkspaceUse use(options.workspace);
  const CheckedCall call(arguments, options, plan);
  CheckBackward(out, lse, grad_out, grad_lse, gradients, call.problem);
  call.method->Backward(
      call.problem, call.info(), plan,
      {out, grad_out, static_cast<const float*>(lse.data),
       grad_lse ? static_cast<const float*>(grad_lse->data) : nullptr, gradients});
}

Plan plan(const Arguments& arguments, const Options& options) {
  const FloatEnvironment environment;
  const WorkspaceUse use(options.workspace);
  const AttentionMethod* asked = FindMethod(options.method);
  const bool needs_value = asked != nullptr && asked->PlansByValue();
  if (needs_value && arguments.value.rank == 0) {
    Fail(ErrorKind::kValue, "value: method ", asked->info().name,
         " plans by the values' spread too; pass value");
  }
  const bool chooses = asked != nullptr && asked->info().chooses;
  Problem problem =
      CheckProblem(arguments, options, needs_value || (chooses && arguments.value.rank != 0));
  PlanInfo info;
  const AttentionMethod& method = CheckMethod({arguments, options, problem}, info);
  ApplyPlan(info, problem);
  PlanParts parts = EmptyParts(problem, info);
  method.MakePlan(problem, parts);
  return Pack(std::move(parts));
}

Statistics estimate(const Arguments& arguments, const Options& options) {
  const FloatEnvironment environment;
  const WorkspaceUse use(options.workspace);
  const CheckedCall call(arguments, options, nullptr);
  const auto start = std::chrono::steady_clock::now();
  Statistics statistics;
  StartStatistics(call.made, statistics);
  call.method->Estimate(call.problem, call.made, statistics);
  CountDenseHeads(*call.method, statistics);
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
               const Plan* given) {
  const FloatEnvironment environment;
  const WorkspaceUse use(options.workspace);
  const CheckedCall call(arguments, options, given);
  const Plan whole = call.WholePlan();
  const PlanView view(whole);
  ExecuteReference(call.problem, *call.method->Columns(call.problem, view), out, lse);
}

void reference_backward(const Arguments& arguments, const Options& options,
                        const TensorView& grad_out, const std::optional<TensorView>& grad_lse,
                        double* grad_query, double* grad_key, double* grad_value,
                        const Plan* given) {
  const FloatEnvironment environment;
  const WorkspaceUse use(options.workspace);
  const CheckedCall call(arguments, options, given);
  const Plan whole = call.WholePlan();
  const PlanView view(whole);
  ExecuteReferenceBackward(call.problem, *call.method->Columns(call.problem, view), grad_out,
                           grad_lse ? static_cast<const float*>(grad_lse->data) : nullptr,
                           grad_query, grad_key, grad_value);
}

std::vector<std::string> instruction_sets() { return kernels::InstructionSets(); }

void force_instruction_set(const std::string& name) {
  if (kernels::ForceInstructionSet(name)) return;
  std::string accepted;
  for (const std::string& known : instruction_sets()) accepted += " " + known;
  Fail(ErrorKind::kValue, "instruction set: got ", name, ", this machine has", accepted);
}

}  // namespace smyrf
