#include "methods/dense/dense.h"

#include <memory>
#include <numeric>
#include <vector>

#include "methods/structure.h"
#include "run/backward.h"
#include "run/forward.h"

namespace smyrf {
namespace {

class DenseColumns final : public ReferenceColumns {
 public:
  explicit DenseColumns(const Problem& problem) : problem_(problem) {}
  std::vector<std::int64_t> Of(std::int64_t b, std::int64_t, std::int64_t) const override {
    return AllKeys(problem_, b);
  }

 private:
  const Problem& problem_;
};

class Dense final : public AttentionMethod {
 public:
  const MethodInfo& info() const override {
    static constexpr MethodInfo kInfo{
        .method = Method::kDense,
        .name = "dense",
        .summary = "every allowed pair, exactly",
        .takes_masks = true,
        .takes_dropout = true,
        .takes_precision = true,
    };
    return kInfo;
  }
  void SetDials(const Request& request, PlanInfo& plan) const override {
    const Precision asked = request.options.precision;
    // Errors are allowed by whoever chose this method for the call.
    const bool exact = asked == Precision::kAuto && plan.precision_error == 0.0;
    plan.precision = exact ? Precision::kFloat32 : asked;
    if (plan.precision != Precision::kAuto) plan.precision_error = 0.0;
  }
  void CheckStructure(const PlanView& plan) const override { RequireCounts(plan, 0, 0); }
  double Density(const PlanView&, std::int64_t, std::int64_t) const override { return 1.0; }
  double Forward(const Problem& problem, const PlanInfo& info, const Plan* plan,
                 const Outputs& outputs) const override {
    ForwardDense(problem, AllHeads(problem), problem.run, outputs);
    if (outputs.plan != nullptr && plan == nullptr) *outputs.plan = Pack(EmptyParts(problem, info));
    return 0.0;
  }
  void Backward(const Problem& problem, const PlanInfo&, const Plan*,
                const BackwardCall& call) const override {
    BackwardDense(problem, call);
  }
  std::unique_ptr<ReferenceColumns> Columns(const Problem& problem,
                                            const PlanView&) const override {
    return std::make_unique<DenseColumns>(problem);
  }
  void Estimate(const Problem&, const PlanInfo&, Statistics&) const override {}
};

}  // namespace

const AttentionMethod& DenseMethod() {
  static const Dense method;
  return method;
}

}  // namespace smyrf
