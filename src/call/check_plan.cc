// Whether a plan fits a call.
#include <optional>

#include "base/message.h"
#include "call/check.h"

namespace smyrf {
namespace {

[[noreturn]] void Conflict(const char* name) {
  Fail(ErrorKind::kValue, name,
       ": differs from the plan's, which decides; leave it out or make a new plan");
}

template <class T>
void CheckSame(const char* name, const T& given, const T& planned) {
  if (given == planned) return;
  Fail(ErrorKind::kValue, "plan: was made for ", name, " = ", planned, ", this call has ", given,
       "; make a plan for this call");
}

void CheckSizes(const PlanInfo& plan, const Problem& problem) {
  CheckSame("batch", problem.batch, plan.batch);
  CheckSame("query heads", problem.query_heads, plan.query_heads);
  CheckSame("key heads", problem.key_heads, plan.key_heads);
  CheckSame("Nq", problem.queries, plan.queries);
  CheckSame("Nk", problem.keys, plan.keys);
  CheckSame("D", problem.depth, plan.depth);
}

/// Dials that are given must be the plan's. As in a call that makes its own plan: those that
/// a method which only chooses has, but not the one that it took, are not used.
void CheckDials(const Options& options, const PlanInfo& plan, const MethodInfo& method) {
  const AttentionMethod* asked = FindMethod(options.method);
  if (asked == nullptr) Conflict("method");
  for (const DialOption& option : kDialOptions) {
    const std::optional<double> value = option.Asked(options);
    if (!value) continue;
    const Dial* of_asked = asked->info().Find(option);
    const Dial* of_plan = method.Find(option);
    if (of_asked != nullptr) CheckDial(*of_asked, options);
    const bool unused = of_asked != nullptr && of_plan == nullptr;
    if (!unused && value != option.planned(plan)) Conflict(option.name);
  }
  const bool unused = !method.takes_seed && (asked->info().takes_seed || options.dropout_p > 0.0);
  if (!unused && options.seed != 0 && options.seed != plan.seed) Conflict("seed");
}

/// What is asked of the products must be the plan's. A plan of `auto` may allow errors that no dial
/// of its method tells of: whoever names the method does not mean them.
void CheckPrecision(const Options& options, const PlanInfo& plan, bool chooses) {
  if (options.precision != Precision::kAuto && options.precision != plan.precision) {
    Conflict("precision");
  }
  if (plan.precision != Precision::kAuto || plan.precision_error == plan.tolerance) return;
  if (!chooses) Conflict("precision");
  if (options.tolerance && *options.tolerance != plan.precision_error) Conflict("tolerance");
}

}  // namespace

const AttentionMethod& CheckPlan(const Plan& plan, const Arguments& arguments,
                                 const Options& options, Problem& problem) {
  const PlanInfo& info = plan.info();
  const PlanView view(plan);
  CheckSizes(info, problem);
  CheckStructure(view);
  const AttentionMethod& method = *FindMethod(info.method);
  const bool chooses =
      FindMethod(options.method) != nullptr && FindMethod(options.method)->info().chooses;
  if (!chooses && options.method != info.method) Conflict("method");
  CheckDials(options, info, method.info());
  CheckPrecision(options, info, chooses);
  if (options.is_causal && !info.is_causal) Conflict("is_causal");
  if (options.window && (!info.window || options.window->left != info.window->left ||
                         options.window->right != info.window->right)) {
    Conflict("window");
  }
  if (options.positions && options.positions != info.positions) Conflict("positions");
  ValidLists valid_queries = Unflatten(PlanAccess::Data(plan).valid_queries);
  ValidLists valid_keys = Unflatten(PlanAccess::Data(plan).valid_keys);
  if (arguments.query_padding_mask && problem.valid_queries != valid_queries) {
    Conflict("query_padding_mask");
  }
  if (arguments.key_padding_mask && problem.valid_keys != valid_keys) {
    Conflict("key_padding_mask");
  }
  problem.valid_queries = std::move(valid_queries);
  problem.valid_keys = std::move(valid_keys);
  if (!method.info().takes_masks && arguments.attn_mask) {
    Fail(ErrorKind::kUnsupported, "attn_mask: the plan's method ", method.info().name,
         " takes padding masks only; use a dense plan");
  }
  if (info.has_attn_mask != arguments.attn_mask.has_value()) {
    Fail(ErrorKind::kValue, "attn_mask: the plan was made ",
         info.has_attn_mask ? "with" : "without",
         " one, which it does not hold; pass it to both calls or to neither");
  }
  try {
    method.CheckCall({arguments, options, problem});
  } catch (const Error& error) {
    Fail(error.kind(), error.what(), " (the method is the plan's)");
  }
  if (info.scale && problem.scale != *info.scale) {
    CheckSame("scale", Exact(problem.scale), Exact(*info.scale));
  }
  return method;
}

}  // namespace smyrf
