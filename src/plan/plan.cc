#include "smyrf/plan.h"

namespace smyrf {

double Plan::density(std::int64_t batch_index, std::int64_t head_index) const {
  if (method != Method::kLsh) return 1.0;  // every allowed pair, once
  double evaluated = 0.0;
  double rows = 0.0;
  double columns = 0.0;
  for (std::int64_t round = 0; round < rounds(); ++round) {
    const HeadPlan& plan = head(round, batch_index, head_index);
    if (plan.non_finite) return 0.0;  // nothing is evaluated: the output is NaN
    if (round == 0) {
      rows = static_cast<double>(plan.query_order.size());
      columns = static_cast<double>(plan.key_order.size());
    }
    for (const QueryBlock& block : plan.blocks) {
      for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
        evaluated += static_cast<double>(block.end - block.begin) *
                     static_cast<double>(plan.ranges[r].end - plan.ranges[r].begin);
      }
    }
  }
  return rows * columns > 0.0 ? evaluated / (rows * columns) : 1.0;
}

}  // namespace smyrf
