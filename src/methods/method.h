// What a method is to the rest of the library: one object without state. All that knows a method
// lies in its folder, and registry.cc lists it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "reference/columns.h"
#include "run/backward.h"
#include "run/plan_parts.h"
#include "run/problem.h"
#include "smyrf/methods.h"
#include "smyrf/statistics.h"

namespace smyrf {

/// A call that was found to be sound, as it was asked for.
struct Request {
  const Arguments& arguments;
  const Options& options;
  const Problem& problem;
};

class AttentionMethod {
 public:
  AttentionMethod() = default;
  AttentionMethod(const AttentionMethod&) = delete;
  AttentionMethod& operator=(const AttentionMethod&) = delete;
  AttentionMethod(AttentionMethod&&) = delete;
  AttentionMethod& operator=(AttentionMethod&&) = delete;
  virtual ~AttentionMethod() = default;

  virtual const MethodInfo& info() const = 0;

  /// The method that takes the call: this one, but for those that only choose. It may set the
  /// plan's reason and dials.
  virtual const AttentionMethod& Choose(const Request& /*request*/, PlanInfo& /*plan*/) const {
    return *this;
  }
  /// Throws where the method can't take such a call, beyond what info() says. Also called for calls
  /// that bring a plan.
  virtual void CheckCall(const Request& /*request*/) const {}
  /// Dials as they hold for this call, defaults filled in. May set the plan's window: the problem's
  /// mask is made from the plan.
  virtual void SetDials(const Request& /*request*/, PlanInfo& /*plan*/) const {}

  /// Whether planning reads value: `plan` of other methods does without.
  virtual bool PlansByValue() const { return false; }
  /// Fills in heads and trees. `plan` has info and padding.
  virtual void MakePlan(const Problem& /*problem*/, PlanParts& /*plan*/) const {}
  /// Throws unless heads and trees keep what smyrf/plan.h says of them; sizes, dials and padding
  /// were checked before. Cost: one look at each number.
  virtual void CheckStructure(const PlanView& plan) const = 0;
  /// Evaluated over allowed pairs of one head.
  virtual double Density(const PlanView& plan, std::int64_t batch, std::int64_t head) const = 0;

  /// Writes outputs, and of the statistics, where asked for, the heads; their number is set.
  /// Carries out `plan`, or, where that is null, plans by the dials of `info`, and then keeps the
  /// plan where outputs.plan asks for it. Returns the wall seconds that planning took.
  virtual double Forward(const Problem& problem, const PlanInfo& info, const Plan* plan,
                         const Outputs& outputs) const = 0;
  /// Plans as Forward does.
  virtual void Backward(const Problem& problem, const PlanInfo& info, const Plan* plan,
                        const BackwardCall& call) const = 0;
  /// What the float64 reference evaluates. Problem and plan must outlive it.
  virtual std::unique_ptr<ReferenceColumns> Columns(const Problem& problem,
                                                    const PlanView& plan) const = 0;
  /// Fills in the heads of the statistics without carrying anything out. Throws where the method
  /// can't tell.
  virtual void Estimate(const Problem& problem, const PlanInfo& info,
                        Statistics& statistics) const = 0;
  /// Why heads may be done as dense, for the reason of the statistics.
  virtual const char* WhyDense() const { return ""; }
};

/// The method of a number, or null.
const AttentionMethod* FindMethod(Method method);
/// All: registry.cc.
std::span<const AttentionMethod* const> AllMethods();

/// A plan of the call that is still without heads and trees.
inline PlanParts EmptyParts(const Problem& problem, const PlanInfo& info) {
  PlanParts parts;
  static_cast<PlanInfo&>(parts) = info;
  parts.valid_queries = problem.valid_queries;
  parts.valid_keys = problem.valid_keys;
  return parts;
}

}  // namespace smyrf
