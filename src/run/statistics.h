// What statistics say of a planned head.
#pragma once

#include "smyrf/plan.h"
#include "smyrf/statistics.h"

namespace smyrf {

/// All but density and times, which depend on how the plan is carried out.
inline void DescribeHead(const HeadView& plan, Statistics::Head& head) {
  head.dense = plan.dense;
  head.non_finite = plan.non_finite;
  if (!plan.dense) {  // else dense attention tells
    head.expected_error = plan.expected_error;
    head.expected_lse_error = plan.expected_lse_error;
  }
  head.expected_work = plan.expected_work;
}

}  // namespace smyrf
