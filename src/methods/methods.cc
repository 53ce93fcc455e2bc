// The public table of methods, from the registry.
#include "smyrf/methods.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <string_view>
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

namespace {

constexpr std::array kPrecisions{"auto", "float32", "int16", "int8"};  // in the order of the enum

}  // namespace

const char* name(Precision precision) {
  const auto at = static_cast<std::size_t>(precision);
  return at < kPrecisions.size() ? kPrecisions.at(at) : "?";
}

std::optional<Precision> precision_named(std::string_view name) {
  const auto* const found = std::ranges::find(kPrecisions, name);
  if (found == kPrecisions.end()) return std::nullopt;
  return static_cast<Precision>(found - kPrecisions.begin());
}

}  // namespace smyrf
