// Whether a plan holds together, whatever its method: the method checks its own part.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "call/check.h"
#include "methods/structure.h"

namespace smyrf {
namespace {

void CheckSizes(const PlanInfo& plan) {
  const auto sizes = {plan.batch, plan.query_heads, plan.key_heads, plan.queries, plan.keys};
  double heads = 1.0;
  for (const std::int64_t size : {plan.batch, std::max(plan.query_heads, plan.key_heads)}) {
    heads *= static_cast<double>(std::max<std::int64_t>(1, size));
  }
  const auto rows = static_cast<double>(std::max({std::int64_t{1}, plan.queries, plan.keys}));
  Require(std::ranges::all_of(sizes, [](std::int64_t size) { return size >= 0; }) &&
              plan.queries <= kMaxRows && plan.keys <= kMaxRows && heads * rows <= kMaxAllRows &&
              plan.depth >= 1 && plan.depth <= kMaxHeadDimension,
          "sizes", "one is out of range");
  Require(plan.key_heads > 0 ? plan.query_heads % plan.key_heads == 0 : plan.query_heads == 0,
          "sizes", "query heads must be a multiple of key heads");
}

/// A plan has the dials of its method, in their range, and no other.
void CheckDials(const PlanInfo& plan, const MethodInfo& method) {
  for (const DialOption& option : kDialOptions) {
    const std::optional<double> value = option.planned(plan);
    const Dial* dial = method.Find(option);
    Require(dial != nullptr ? !value || dial->Accepts(*value) : !value || *value == 0.0,
            "method and dials", "a dial is out of range or none of the method's");
  }
  Require(plan.precision <= Precision::kInt8 && plan.precision_error >= 0.0 &&
              plan.precision_error < 1.0 &&
              (method.takes_precision || plan.precision == Precision::kFloat32),
          "method and dials", "the precision is out of range or none of the method's");
  Require(!plan.window || (plan.window->left >= -1 && plan.window->right >= -1), "masks",
          "a side of the window is below -1");
  Require(!plan.positions || (IsPosition(plan.positions->first_query, plan.queries) &&
                              IsPosition(plan.positions->first_key, plan.keys)),
          "masks", "positions are out of range");
  Require(method.takes_masks || !(plan.is_causal || plan.window || plan.has_attn_mask), "masks",
          "the method takes padding only");
}

void CheckPadding(std::size_t lists, std::int64_t batch, std::int64_t rows,
                  const std::function<ValidRows(std::int64_t)>& list_of) {
  Require(lists == 0 || static_cast<std::int64_t>(lists) == batch, "padding lists",
          "there must be one a batch entry, or none");
  for (std::int64_t b = 0; b < static_cast<std::int64_t>(lists); ++b) {
    const std::span<const std::int32_t> list = list_of(b).value_or(std::span<const std::int32_t>());
    Require(list.empty() || (list.front() >= 0 && list.back() < rows), "padding lists",
            "a row is out of range");
    Require(std::ranges::adjacent_find(list, std::greater_equal<>()) == list.end(), "padding lists",
            "rows must ascend");
  }
}

}  // namespace

void CheckStructure(const PlanView& plan) {
  const PlanInfo& info = plan.info();
  CheckSizes(info);
  const AttentionMethod* method = FindMethod(info.method);
  Require(method != nullptr && !method->info().chooses, "method and dials",
          "there is no such method");
  CheckDials(info, method->info());
  CheckPadding(plan.valid_query_lists(), info.batch, info.queries,
               [&](std::int64_t b) { return plan.valid_queries(b); });
  CheckPadding(plan.valid_key_lists(), info.batch, info.keys,
               [&](std::int64_t b) { return plan.valid_keys(b); });
  method->CheckStructure(plan);
}

}  // namespace smyrf
