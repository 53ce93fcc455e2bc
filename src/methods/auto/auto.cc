#include "methods/auto/auto.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>

#include "base/message.h"
#include "methods/dense/dense.h"
#include "methods/tree/tree.h"

namespace smyrf {
namespace {

/// What of the call `tree` does not take, or null.
const char* Refused(const Request& request) {
  return request.arguments.attn_mask         ? "attn_mask"
         : request.options.is_causal         ? "is_causal"
         : request.options.window            ? "window"
         : request.options.dropout_p > 0.0   ? "dropout_p"
         : request.options.tolerance == 0.0  ? "tolerance 0, the default where a gradient is needed"
         : request.arguments.value.rank == 0 ? "a plan without value"
                                             : nullptr;
}

/// No call is carried out by it: the method that it chooses does that.
class Auto final : public AttentionMethod {
 public:
  const MethodInfo& info() const override {
    static const std::array dials{&ToleranceDial()};
    static const MethodInfo info{
        .method = Method::kAuto,
        .name = "auto",
        .summary =
            "tree for long inputs that it can take, else dense, narrow where that is allowed",
        .dials = dials,
        .takes_masks = true,
        .takes_dropout = true,
        .takes_seed = true,
        .takes_precision = true,
        .chooses = true};
    return info;
  }
  const AttentionMethod& Choose(const Request& request, PlanInfo& plan) const override {
    const Problem& problem = request.problem;
    const std::int64_t rows = problem.query_heads > problem.key_heads ? kAutoRowsShared : kAutoRows;
    const char* refused = Refused(request);
    if (std::min(problem.queries, problem.keys) < rows) {
      plan.reason = Message("auto: dense below ", rows, " queries or keys");
    } else if (refused != nullptr) {
      plan.reason = Message("auto: dense because of ", refused);
    } else if (problem.depth > kAutoDepth) {
      plan.reason = Message("auto: dense above D ", kAutoDepth);
    } else {
      plan.dense_below = rows;
      plan.reason = Message("auto: tree from ", rows, " queries and keys on");
      return TreeMethod();
    }
    plan.precision_error = request.options.tolerance.value_or(kDefaultTolerance);
    return DenseMethod();
  }

  void CheckStructure(const PlanView&) const override { NotCarriedOut(); }
  double Density(const PlanView&, std::int64_t, std::int64_t) const override { NotCarriedOut(); }
  double Forward(const Problem&, const PlanInfo&, const Plan*, const Outputs&) const override {
    NotCarriedOut();
  }
  void Backward(const Problem&, const PlanInfo&, const Plan*, const BackwardCall&) const override {
    NotCarriedOut();
  }
  std::unique_ptr<ReferenceColumns> Columns(const Problem&, const PlanView&) const override {
    NotCarriedOut();
  }
  void Estimate(const Problem&, const PlanInfo&, Statistics&) const override { NotCarriedOut(); }

 private:
  [[noreturn]] static void NotCarriedOut() {
    Fail(ErrorKind::kValue, "plan: its method is auto, which only chooses; make it with plan()");
  }
};

}  // namespace

const AttentionMethod& AutoMethod() {
  static const Auto method;
  return method;
}

}  // namespace smyrf
