// Which method and dials a call takes.
#include <cstddef>
#include <optional>
#include <string>

#include "base/message.h"
#include "call/check.h"

namespace smyrf {
namespace {

/// What of the call a method without masks refuses, or null.
const char* MaskOf(const Request& request) {
  return request.arguments.attn_mask ? "attn_mask"
         : request.options.is_causal ? "is_causal"
         : request.options.window    ? "window"
                                     : nullptr;
}

/// Names of all methods, as a sentence lists them.
std::string MethodNames() {
  std::string names;
  for (std::size_t i = 0; i < methods().size(); ++i) {
    if (i > 0) names += i + 1 == methods().size() ? " and " : ", ";
    names += methods()[i]->name;
  }
  return names;
}

[[noreturn]] void RefuseDial(const char* dial, const char* of, const MethodInfo& asked) {
  Fail(ErrorKind::kValue, dial, ": is a dial of method ", of, ", but the method is ", asked.name,
       "; pass method='", of, "' or leave ", dial, " out");
}

/// Dials that are given must be the method's own, and in their range.
void CheckDials(const Options& options, const MethodInfo& asked) {
  for (const MethodInfo* owner : methods()) {
    for (const Dial* dial : owner->dials) {
      if (!dial->Asked(options)) continue;
      CheckDial(*dial, options);
      if (!owner->chooses && !asked.Has(*dial)) RefuseDial(dial->name, owner->name, asked);
    }
  }
}

}  // namespace

void CheckDial(const Dial& dial, const Options& options) {
  const std::optional<double> value = dial.Asked(options);
  if (!value || dial.Accepts(*value)) return;
  Fail(ErrorKind::kValue, dial.name, ": got ",
       dial.whole != nullptr ? Message((options.*dial.whole).value_or(0)) : Message(*value), ", ",
       dial.accepted);
}

const AttentionMethod& CheckMethod(const Request& request, PlanInfo& plan) {
  const Options& options = request.options;
  const Problem& problem = request.problem;
  const AttentionMethod* asked = FindMethod(options.method);
  if (asked == nullptr) {
    Fail(ErrorKind::kValue, "method: got number ", static_cast<int>(options.method),
         ", accepted are ", MethodNames());
  }
  CheckDials(options, asked->info());
  plan.reason = "asked for";
  plan.batch = problem.batch;
  plan.query_heads = problem.query_heads;
  plan.key_heads = problem.key_heads;
  plan.queries = problem.queries;
  plan.keys = problem.keys;
  plan.depth = problem.depth;
  plan.is_causal = options.is_causal;
  plan.has_attn_mask = request.arguments.attn_mask.has_value();
  plan.window = options.window;
  plan.positions = options.positions;
  const AttentionMethod& taken = asked->Choose(request, plan);
  const MethodInfo& info = taken.info();
  plan.method = info.method;
  if (info.takes_seed) {
    plan.seed = options.seed;
  } else if (options.seed != 0 && !asked->info().takes_seed && options.dropout_p == 0.0) {
    for (const MethodInfo* other : methods()) {
      if (other->takes_seed && !other->chooses) {
        RefuseDial("seed", other->name, asked->info());
      }
    }
  }
  const char* mask = MaskOf(request);
  if (!info.takes_masks && mask != nullptr) {
    Fail(ErrorKind::kUnsupported, mask, ": method ", info.name,
         " takes padding masks only; use method='dense' or 'auto'");
  }
  taken.CheckCall(request);
  taken.SetDials(request, plan);
  return taken;
}

}  // namespace smyrf
