// The public table of methods, from the registry.
#include "smyrf/methods.h"

#include <vector>

#include "methods/method.h"

namespace smyrf {

std::span<const MethodInfo* const> methods() {
  static const std::vector<const MethodInfo*> infos = [] {
    std::vector<const MethodInfo*> result;
    for (const AttentionMethod* method : AllMethods()) result.push_back(&method->info());
    return result;
  }();
  return infos;
}

const AttentionMethod* FindMethod(Method method) {
  for (const AttentionMethod* known : AllMethods()) {
    if (known->info().method == method) return known;
  }
  return nullptr;
}

const char* name(Method method) {
  const AttentionMethod* found = FindMethod(method);
  return found != nullptr ? found->info().name : "?";
}

std::optional<Method> method_named(std::string_view name) {
  for (const MethodInfo* info : methods()) {
    if (info->name == name) return info->method;
  }
  return std::nullopt;
}

}  // namespace smyrf
