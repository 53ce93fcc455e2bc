// A few calls of every method, to be compared in all their bits.
#pragma once

#include <vector>

#include "testing/everything.h"
#include "testing/random_call.h"

namespace smyrf::testing {

/// A call that needs several threads, of each method; of `tree` one with few groups of heads, whose
/// blocks are shared, and one with many.
inline std::vector<Call> CallsOfAllMethods() {
  Random random(190);
  std::vector<Call> calls;
  const auto add = [&](const Shape& shape, Method method) {
    Call call(shape);
    FillSmooth(random, call);
    call.options.method = method;
    call.options.num_threads = 3;
    calls.push_back(call);
  };
  add({2, 3, 3, 300, 400, 16, 16}, Method::kDense);
  add({1, 2, 2, 3, 9000, 16, 16}, Method::kDense);  // keys are split
  add({1, 3, 3, 300, 400, 16, 16}, Method::kLsh);
  add({1, 2, 1, 230, 700, 16, 16}, Method::kTree);
  add({2, 3, 3, 230, 700, 16, 16}, Method::kTree);
  return calls;
}

/// What such a call gives, with a plan made for it and carried out too.
struct Computed {
  Everything everything;
  Result by_plan;

  explicit Computed(const Call& call)
      : everything(call, Upstreams(call)), by_plan(Attend(call, &everything.made)) {}
  bool SameBits(const Computed& other) const {
    return everything.SameBits(other.everything) && by_plan.SameBits(other.by_plan);
  }

 private:
  static Upstream Upstreams(const Call& call) {
    Random random(191);
    return RandomUpstream(random, call, true);
  }
};

}  // namespace smyrf::testing
