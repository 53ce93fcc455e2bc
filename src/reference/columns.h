// What the float64 reference evaluates, which methods say by their definitions.
#pragma once

#include <cstdint>
#include <vector>

#include "base/half.h"
#include "run/problem.h"

namespace smyrf {

inline double Element(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t i,
                      std::int64_t c) {
  const std::int64_t at =
      b * view.strides[0] + h * view.strides[1] + i * view.strides[2] + c * view.strides[3];
  return LoadElement(static_cast<const std::byte*>(view.data) + at * SizeOf(view.dtype),
                     view.dtype);
}

/// Gradients by the summaries of one (batch, key head), which a method shapes as it needs.
struct SummaryGradients {
  std::vector<double> keys, values;  ///< by means, (summaries, D), (summaries, Dv)
  std::vector<double> along, rest;   ///< by variances, (summaries)
};

/// The columns of a query's softmax: keys, and summaries that stand for several. Summary n is
/// column -1 - n.
class ReferenceColumns {
 public:
  ReferenceColumns() = default;
  ReferenceColumns(const ReferenceColumns&) = delete;
  ReferenceColumns& operator=(const ReferenceColumns&) = delete;
  ReferenceColumns(ReferenceColumns&&) = delete;
  ReferenceColumns& operator=(ReferenceColumns&&) = delete;
  virtual ~ReferenceColumns() = default;

  /// Whether the head's output is NaN.
  virtual bool NonFinite(std::int64_t /*b*/, std::int64_t /*h*/) const { return false; }
  /// The columns of a valid query, a key as often as it is evaluated. Masks are asked later.
  virtual std::vector<std::int64_t> Of(std::int64_t b, std::int64_t h, std::int64_t i) const = 0;

  // Methods with summaries.
  virtual double Logit(std::int64_t /*b*/, std::int64_t /*h*/, std::int64_t /*i*/,
                       std::int64_t /*summary*/) const {
    return 0.0;
  }
  virtual double Value(std::int64_t /*b*/, std::int64_t /*key_head*/, std::int64_t /*summary*/,
                       std::int64_t /*c*/) const {
    return 0.0;
  }
  virtual SummaryGradients NoGradients(std::int64_t /*b*/, std::int64_t /*key_head*/) const {
    return {};
  }
  /// What the gradient `ds` of a summary's logit adds to those of its query and of the summaries.
  virtual void AddGradient(std::int64_t /*b*/, std::int64_t /*h*/, std::int64_t /*i*/,
                           std::int64_t /*summary*/, double /*ds*/, double* /*grad_query*/,
                           SummaryGradients& /*to*/) const {}
  /// From the summaries to every key (Nk, D) and value (Nk, Dv) that they are of.
  virtual void Distribute(std::int64_t /*b*/, std::int64_t /*key_head*/,
                          const SummaryGradients& /*from*/, double* /*grad_key*/,
                          double* /*grad_value*/) const {}
};

}  // namespace smyrf
