#include "methods/tree/tree.h"

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/message.h"
#include "methods/structure.h"
#include "methods/tree/attention.h"
#include "methods/tree/planner.h"
#include "methods/tree/reference.h"
#include "methods/tree/structure.h"

namespace smyrf {
namespace {

const Dial kTolerance{
    .option = kToleranceOption,
    .meaning = "relative error of out aimed for in every (batch, query head)",
    .accepted = "expected a relative error from 0 (every pair) to below 1",
    .least = 0.0,
    .most = 1.0,
    .below_most = true,
    .default_value = kDefaultTolerance,
};

const Dial kMaxDensity{
    .option = kMaxDensityOption,
    .meaning = "most pairs, exact and summary, over all pairs",
    .accepted = "expected a share of the pairs above 0, at most 1",
    .least = 0.0,
    .most = 1.0,
    .above_least = true,
};

class Tree final : public AttentionMethod {
 public:
  const MethodInfo& info() const override {
    static const std::array dials{&kTolerance, &kMaxDensity};
    static const MethodInfo info{.method = Method::kTree,
                                 .name = "tree",
                                 .summary = "far keys summarised, near ones exact, to a tolerance",
                                 .dials = dials,
                                 .takes_seed = true,
                                 .takes_precision = true};
    return info;
  }

  void CheckCall(const Request& request) const override {
    if (request.options.dropout_p == 0.0) return;
    Fail(ErrorKind::kUnsupported, "dropout_p: got ", request.options.dropout_p,
         ", but method tree has no dropout, since a summary stands for many pairs; use "
         "method='dense', or dropout_p=0");
  }
  void SetDials(const Request& request, PlanInfo& plan) const override {
    plan.tolerance = request.options.tolerance.value_or(kDefaultTolerance);
    plan.max_density = request.options.max_density;
    plan.precision = request.options.precision;
    plan.precision_error = plan.precision == Precision::kAuto ? plan.tolerance : 0.0;
    plan.scale = request.problem.scale;
  }
  bool PlansByValue() const override { return true; }
  void MakePlan(const Problem& problem, PlanParts& plan) const override { PlanTree(problem, plan); }
  void CheckStructure(const PlanView& plan) const override { CheckTrees(plan); }
  double Density(const PlanView& plan, std::int64_t batch, std::int64_t head) const override {
    return TreeDensity(plan, batch, head);
  }

  double Forward(const Problem& problem, const PlanInfo& info, const Plan* plan,
                 const Outputs& outputs) const override {
    if (plan != nullptr) {
      AttendTreePlan(problem, *plan, outputs);
      return 0.0;
    }
    const auto start = std::chrono::steady_clock::now();
    const double share = AttendTree(problem, info, outputs);
    return share * std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  void Backward(const Problem& problem, const PlanInfo& info, const Plan* plan,
                const BackwardCall& call) const override {
    // Without query heads there is nothing but zeros to write.
    if (problem.query_heads == 0) return BackwardDense(problem, call);
    plan != nullptr ? BackwardTreePlan(problem, *plan, call) : BackwardTree(problem, info, call);
  }
  std::unique_ptr<ReferenceColumns> Columns(const Problem& problem,
                                            const PlanView& plan) const override {
    return TreeColumnsOf(problem, plan);
  }
  void Estimate(const Problem& problem, const PlanInfo& info,
                Statistics& statistics) const override {
    EstimateTree(problem, info, statistics);
  }
  const char* WhyDense() const override {
    return "few valid rows, expected to cost no more, or no threshold meets the tolerance";
  }
};

}  // namespace

const AttentionMethod& TreeMethod() {
  static const Tree method;
  return method;
}

const Dial& ToleranceDial() { return kTolerance; }

}  // namespace smyrf
