#include "smyrf/plan.h"

#include "methods/method.h"
#include "run/plan_parts.h"

namespace smyrf {

Plan::Plan() {
  static const auto empty = std::make_shared<const PlanData>();
  data_ = empty;
}

const PlanInfo& Plan::info() const { return data_->info; }

HeadView Plan::head(std::int64_t round, std::int64_t batch_index, std::int64_t query_head) const {
  return PlanView(*this).head(round, batch_index, query_head);
}

KeyForestView Plan::forest(std::int64_t batch_index, std::int64_t key_head) const {
  return PlanView(*this).forest(batch_index, key_head);
}

bool Plan::has_heads() const { return !data_->heads.empty(); }

bool Plan::has_forests() const { return !data_->forests.empty(); }

std::optional<std::span<const std::int32_t>> Plan::valid_queries(std::int64_t batch_index) const {
  return ListOf(data_->valid_queries, batch_index);
}

std::optional<std::span<const std::int32_t>> Plan::valid_keys(std::int64_t batch_index) const {
  return ListOf(data_->valid_keys, batch_index);
}

double Plan::density(std::int64_t batch_index, std::int64_t query_head) const {
  return FindMethod(info().method)->Density(*this, batch_index, query_head);
}

}  // namespace smyrf
