#include "methods/window/window.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/message.h"
#include "methods/structure.h"
#include "run/backward.h"
#include "run/forward.h"
#include "simd/mask.h"

namespace smyrf {
namespace {

/// The keys that the window and causality leave a query, before padding.
Mask BandOf(const PlanInfo& plan, const std::optional<Window>& window) {
  return {plan.queries, plan.keys, plan.is_causal, window, {}, plan.positions};
}

class WindowColumns final : public ReferenceColumns {
 public:
  WindowColumns(const Problem& problem, const PlanInfo& info)
      : problem_(problem), band_(BandOf(info, info.window)) {}
  std::vector<std::int64_t> Of(std::int64_t b, std::int64_t, std::int64_t i) const override {
    std::vector<std::int64_t> keys;
    ForEachValid(problem_.valid_keys, b, band_.First(i), band_.Last(i),
                 [&](std::int64_t j) { keys.push_back(j); });
    return keys;
  }

 private:
  const Problem& problem_;
  const Mask band_;
};

/// Pairs of valid rows of one batch entry that lie in the band.
double Pairs(const PlanView& plan, std::int64_t batch, const Mask& band) {
  const ValidRows queries = plan.valid_queries(batch);
  const ValidRows keys = plan.valid_keys(batch);
  const auto keys_before = [&](std::int64_t position) {
    if (!keys) return position;
    return static_cast<std::int64_t>(std::lower_bound(keys->begin(), keys->end(), position) -
                                     keys->begin());
  };
  double pairs = 0.0;
  const std::int64_t count = queries ? std::ssize(*queries) : plan.info().queries;
  for (std::int64_t n = 0; n < count; ++n) {
    const std::int64_t i = queries ? (*queries)[static_cast<std::size_t>(n)] : n;
    const std::int64_t seen = keys_before(band.Last(i)) - keys_before(band.First(i));
    pairs += static_cast<double>(std::max<std::int64_t>(0, seen));
  }
  return pairs;
}

double BandDensity(const PlanView& plan, std::int64_t batch) {
  const double allowed = Pairs(plan, batch, BandOf(plan.info(), std::nullopt));
  return allowed > 0.0 ? Pairs(plan, batch, BandOf(plan.info(), plan.info().window)) / allowed
                       : 1.0;
}

void Describe(const PlanView& plan, Statistics& statistics) {
  for (std::int64_t b = 0; b < statistics.batch; ++b) {
    const double density = BandDensity(plan, b);
    for (std::int64_t h = 0; h < statistics.query_heads; ++h) {
      statistics.heads[static_cast<std::size_t>(b * statistics.query_heads + h)].density = density;
    }
  }
}

class WindowAttention final : public AttentionMethod {
 public:
  const MethodInfo& info() const override {
    static constexpr MethodInfo kInfo{.method = kWindow,
                                      .name = "window",
                                      .summary = "every pair in a band, exactly",
                                      .takes_masks = true,
                                      .takes_dropout = true};
    return kInfo;
  }

  void CheckCall(const Request& request) const override {
    if (request.arguments.attn_mask) {
      Fail(ErrorKind::kUnsupported,
           "attn_mask: method window takes is_causal, window and padding; use method='dense'");
    }
    const auto& window = request.options.window;
    if (window && (window->left < 0 || window->right < 0)) {
      Fail(ErrorKind::kValue, "window: got (", window->left, ", ", window->right,
           "), method window needs a bound on both sides; pass two integers from 0 up");
    }
  }
  void SetDials(const Request& request, PlanInfo& plan) const override {
    plan.window = request.options.window.value_or(kDefaultWindow);
  }

  void CheckStructure(const PlanView& plan) const override {
    RequireCounts(plan, 0, 0);
    const auto& window = plan.info().window;
    Require(window && window->left >= 0 && window->right >= 0, "masks",
            "the window must have both sides");
  }
  /// Over the pairs that causality and padding allow.
  double Density(const PlanView& plan, std::int64_t batch, std::int64_t) const override {
    return BandDensity(plan, batch);
  }

  double Forward(const Problem& problem, const PlanInfo& info, const Plan* plan,
                 const Outputs& outputs) const override {
    // The problem's mask is that of the plan's window.
    ForwardDense(problem, AllHeads(problem), problem.run, outputs);
    if (outputs.statistics != nullptr) Describe(EmptyParts(problem, info), *outputs.statistics);
    if (outputs.plan != nullptr && plan == nullptr) *outputs.plan = Pack(EmptyParts(problem, info));
    return 0.0;
  }
  void Backward(const Problem& problem, const PlanInfo&, const Plan*,
                const BackwardCall& call) const override {
    BackwardDense(problem, call);
  }
  std::unique_ptr<ReferenceColumns> Columns(const Problem& problem,
                                            const PlanView& plan) const override {
    return std::make_unique<WindowColumns>(problem, plan.info());
  }
  void Estimate(const Problem& problem, const PlanInfo& info,
                Statistics& statistics) const override {
    Describe(EmptyParts(problem, info), statistics);
  }
};

}  // namespace

const AttentionMethod& WindowMethod() {
  static const WindowAttention method;
  return method;
}

}  // namespace smyrf
