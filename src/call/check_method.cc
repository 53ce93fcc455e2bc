// Which method and dials a call takes.
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

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

/// As a sentence lists them: "a, b and c", where `last` is " and ".
std::string Listed(const std::vector<std::string>& names, const char* last) {
  std::string list;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) list += i + 1 == names.size() ? last : ", ";
    list += names[i];
  }
  return list;
}

/// The names of the methods for which `holds` is true.
template <class Holds>
std::vector<std::string> NamesOf(const Holds& holds) {
  std::vector<std::string> names;
  for (const MethodInfo* method : methods()) {
    if (holds(*method)) names.emplace_back(method->name);
  }
  return names;
}

/// `has`: whether a method has the dial.
template <class Has>
[[noreturn]] void RefuseDial(const char* dial, const MethodInfo& asked, const Has& has) {
  std::vector<std::string> owners =
      NamesOf([&](const MethodInfo& method) { return !method.chooses && has(method); });
  if (owners.empty()) Fail(ErrorKind::kValue, dial, ": no method has this dial; leave it out");
  const std::string list = Listed(owners, " and ");
  for (std::string& owner : owners) owner = Message("method='", owner, "'");
  Fail(ErrorKind::kValue, dial, ": is a dial of method", owners.size() == 1 ? " " : "s ", list,
       ", but the method is ", asked.name, "; pass ", Listed(owners, " or "), " or leave ", dial,
       " out");
}

/// Throws for a value that is out of range in every method that has such a dial.
void CheckAnyDial(const DialOption& option, const Options& options) {
  const Dial* first = nullptr;
  for (const MethodInfo* method : methods()) {
    const Dial* dial = method->Find(option);
    if (dial == nullptr) continue;
    if (dial->Accepts(option.Asked(options).value_or(0.0))) return;
    if (first == nullptr) first = dial;
  }
  if (first != nullptr) CheckDial(*first, options);
}

/// Dials that are given must be the method's own, and in their range.
void CheckDials(const Options& options, const MethodInfo& asked) {
  for (const DialOption& option : kDialOptions) {
    if (!option.Asked(options)) continue;
    if (const Dial* own = asked.Find(option)) {
      CheckDial(*own, options);
      continue;
    }
    CheckAnyDial(option, options);
    RefuseDial(option.name, asked,
               [&](const MethodInfo& method) { return method.Find(option) != nullptr; });
  }
}

void CheckPrecision(const Options& options, const MethodInfo& asked) {
  if (options.precision > Precision::kInt8) {
    Fail(ErrorKind::kValue, "precision: got number ", static_cast<int>(options.precision),
         ", accepted are auto, float32, int16 and int8");
  }
  if (options.precision < Precision::kInt16) return;
  if (!asked.takes_precision) {
    Fail(ErrorKind::kUnsupported, "precision: method ", asked.name,
         " computes in float32 only; leave precision out, or use method='auto'");
  }
  if (options.dropout_p > 0.0) {
    Fail(ErrorKind::kUnsupported,
         "precision: dropout is done in float32 only; use precision='float32', or dropout_p=0");
  }
}

}  // namespace

void CheckDial(const Dial& dial, const Options& options) {
  const auto& [name, whole, real, planned] = dial.option;
  const std::optional<double> value = dial.option.Asked(options);
  if (!value || dial.Accepts(*value)) return;
  Fail(ErrorKind::kValue, name, ": got ",
       whole != nullptr ? Message((options.*whole).value_or(0)) : Exact(*value), ", ",
       dial.accepted);
}

const AttentionMethod& CheckMethod(const Request& request, PlanInfo& plan) {
  const Options& options = request.options;
  const Problem& problem = request.problem;
  const AttentionMethod* asked = FindMethod(options.method);
  if (asked == nullptr) {
    Fail(ErrorKind::kValue, "method: got number ", static_cast<int>(options.method),
         ", accepted are ", Listed(NamesOf([](const MethodInfo&) { return true; }), " and "));
  }
  CheckDials(options, asked->info());
  CheckPrecision(options, asked->info());
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
    RefuseDial("seed", asked->info(), [](const MethodInfo& method) { return method.takes_seed; });
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
