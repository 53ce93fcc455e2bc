#include "run/plan_parts.h"

#include <span>
#include <utility>

namespace smyrf {
namespace {

/// Elements [begin, end) of a list.
template <class T>
std::span<const T> Slice(const std::vector<T>& list, std::uint64_t begin, std::uint64_t end) {
  return std::span(list).subspan(begin, end - begin);
}

/// Appends a list to the array of all and gives where it ends there.
template <class T>
std::uint64_t Append(std::vector<T>&& from, std::vector<T>& to) {
  to.insert(to.end(), from.begin(), from.end());
  from = {};
  return to.size();
}

/// Room for one list of every part.
template <class Made, class T>
void Reserve(const std::vector<Made>& parts, std::vector<T> Made::* list, std::vector<T>& to) {
  std::size_t count = 0;
  for (const Made& part : parts) count += (part.*list).size();
  to.reserve(count);
}

FlatLists Flatten(ValidLists&& lists) {
  FlatLists flat;
  for (std::vector<std::int32_t>& list : lists) {
    flat.ends.push_back(Append(std::move(list), flat.rows));
  }
  return flat;
}

template <class T>
std::vector<T> Copy(std::span<const T> list) {
  return {list.begin(), list.end()};
}

}  // namespace

HeadView PlanData::Head(std::size_t index) const {
  const HeadRecord before = index > 0 ? heads[index - 1] : HeadRecord{};
  const HeadRecord& head = heads[index];
  return {Slice(query_orders, before.query_order, head.query_order),
          Slice(key_orders, before.key_order, head.key_order),
          Slice(blocks, before.blocks, head.blocks),
          Slice(ranges, before.ranges, head.ranges),
          Slice(nodes, before.nodes, head.nodes),
          head.dense != 0,
          head.non_finite != 0,
          head.expected_error,
          head.expected_lse_error,
          head.expected_work};
}

KeyForestView PlanData::Forest(std::size_t index) const {
  const ForestRecord before = index > 0 ? forests[index - 1] : ForestRecord{};
  const ForestRecord& forest = forests[index];
  return {Slice(forest_orders, before.key_order, forest.key_order),
          Slice(segments, before.segments, forest.segments),
          Slice(forest_nodes, before.nodes, forest.nodes),
          Slice(query_bases, before.query_basis, forest.query_basis),
          Slice(key_bases, before.key_basis, forest.key_basis),
          Slice(directions, before.directions, forest.directions),
          Slice(profiles, before.profiles, forest.profiles)};
}

const PlanData& PlanAccess::Data(const Plan& plan) { return *plan.data_; }

Plan PlanAccess::Make(PlanData data) {
  Plan plan;
  plan.data_ = std::make_shared<const PlanData>(std::move(data));
  return plan;
}

ValidRows ListOf(const FlatLists& lists, std::int64_t index) {
  if (lists.ends.empty()) return std::nullopt;
  const auto at = static_cast<std::size_t>(index);
  return Slice(lists.rows, at > 0 ? lists.ends[at - 1] : 0, lists.ends[at]);
}

ValidRows ListOf(const ValidLists& lists, std::int64_t index) {
  if (lists.empty()) return std::nullopt;
  return std::span<const std::int32_t>(lists[static_cast<std::size_t>(index)]);
}

ValidLists Unflatten(const FlatLists& lists) {
  ValidLists result;
  std::uint64_t begin = 0;
  for (const std::uint64_t end : lists.ends) {
    result.push_back(Copy(Slice(lists.rows, begin, end)));
    begin = end;
  }
  return result;
}

Plan Pack(PlanParts&& parts) {
  PlanData data;
  data.info = static_cast<PlanInfo&&>(parts);
  data.valid_queries = Flatten(std::move(parts.valid_queries));
  data.valid_keys = Flatten(std::move(parts.valid_keys));
  data.heads.reserve(parts.heads.size());
  Reserve(parts.heads, &HeadPlan::query_order, data.query_orders);
  Reserve(parts.heads, &HeadPlan::key_order, data.key_orders);
  Reserve(parts.heads, &HeadPlan::blocks, data.blocks);
  Reserve(parts.heads, &HeadPlan::ranges, data.ranges);
  Reserve(parts.heads, &HeadPlan::nodes, data.nodes);
  for (HeadPlan& head : parts.heads) {
    data.heads.push_back({Append(std::move(head.query_order), data.query_orders),
                          Append(std::move(head.key_order), data.key_orders),
                          Append(std::move(head.blocks), data.blocks),
                          Append(std::move(head.ranges), data.ranges),
                          Append(std::move(head.nodes), data.nodes), std::uint64_t{head.dense},
                          std::uint64_t{head.non_finite}, head.expected_error,
                          head.expected_lse_error, head.expected_work});
  }
  for (KeyForest& forest : parts.forests) {
    data.forests.push_back({Append(std::move(forest.key_order), data.forest_orders),
                            Append(std::move(forest.segments), data.segments),
                            Append(std::move(forest.nodes), data.forest_nodes),
                            Append(std::move(forest.query_basis), data.query_bases),
                            Append(std::move(forest.key_basis), data.key_bases),
                            Append(std::move(forest.directions), data.directions),
                            Append(std::move(forest.profiles), data.profiles)});
  }
  return PlanAccess::Make(std::move(data));
}

PlanParts Unpack(const Plan& plan) {
  const PlanData& data = PlanAccess::Data(plan);
  PlanParts parts;
  static_cast<PlanInfo&>(parts) = data.info;
  parts.valid_queries = Unflatten(data.valid_queries);
  parts.valid_keys = Unflatten(data.valid_keys);
  for (std::size_t i = 0; i < data.heads.size(); ++i) {
    const HeadView head = data.Head(i);
    parts.heads.push_back({Copy(head.query_order), Copy(head.key_order), Copy(head.blocks),
                           Copy(head.ranges), Copy(head.nodes), head.dense, head.non_finite,
                           head.expected_error, head.expected_lse_error, head.expected_work});
  }
  for (std::size_t i = 0; i < data.forests.size(); ++i) {
    const KeyForestView forest = data.Forest(i);
    parts.forests.push_back({Copy(forest.key_order), Copy(forest.segments), Copy(forest.nodes),
                             Copy(forest.query_basis), Copy(forest.key_basis),
                             Copy(forest.directions), Copy(forest.profiles)});
  }
  return parts;
}

}  // namespace smyrf
