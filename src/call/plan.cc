#include "smyrf/plan.h"

#include <cstdint>
#include <vector>

namespace smyrf {

double Plan::density(std::int64_t batch_index, std::int64_t head_index) const {
  if (heads.empty()) return 1.0;  // dense: every allowed pair, once
  const auto count = [&](const std::vector<std::vector<std::int32_t>>& valid, std::int64_t all) {
    return static_cast<double>(
        valid.empty()
            ? all
            : static_cast<std::int64_t>(valid[static_cast<std::size_t>(batch_index)].size()));
  };
  const double allowed = count(valid_queries, queries) * count(valid_keys, keys);
  double evaluated = 0.0;
  for (std::int64_t round = 0; round < rounds(); ++round) {
    const HeadPlan& plan = head(round, batch_index, head_index);
    if (plan.non_finite) return 0.0;  // nothing is evaluated: the output is NaN
    if (method == Method::kTree && plan.dense) return 1.0;
    for (const QueryBlock& block : plan.blocks) {
      evaluated += static_cast<double>(block.end - block.begin) *
                   static_cast<double>(block.last_node - block.first_node);
      for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
        evaluated += static_cast<double>(block.end - block.begin) *
                     static_cast<double>(plan.ranges[r].end - plan.ranges[r].begin);
      }
    }
  }
  return allowed > 0.0 ? evaluated / allowed : 1.0;
}

}  // namespace smyrf
