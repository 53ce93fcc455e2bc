// Gradients of a call, by the executor and by the reference, and how near they must be.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "testing/call.h"

namespace smyrf::testing {

/// Gradients by out and, where there is one, by lse.
struct Upstream {
  Tensor out;
  std::vector<float> lse;  ///< empty: none

  std::optional<TensorView> lse_view(const Call& call) const {
    if (lse.empty()) return std::nullopt;
    return Contiguous<const void>(lse.data(), DType::kFloat32,
                                  {call.shape.batch, call.shape.query_heads, call.shape.queries});
  }
};

inline Upstream RandomUpstream(Random& random, const Call& call, bool with_lse,
                               Layout layout = Layout::kContiguous) {
  const Shape& s = call.shape;
  Upstream upstream{
      Tensor(call.query.dtype(), {s.batch, s.query_heads, s.queries, s.value_depth}, layout), {}};
  upstream.out.FillNormal(random);
  if (with_lse) {
    upstream.lse.resize(call.rows());
    for (float& x : upstream.lse) x = static_cast<float>(random.Normal());
  }
  return upstream;
}

struct GradientTensors {
  Tensor query, key, value;

  explicit GradientTensors(const Call& call, Layout layout = Layout::kContiguous)
      : query(call.query.dtype(), call.query.shape(), layout),
        key(call.query.dtype(), call.key.shape(), layout),
        value(call.query.dtype(), call.value.shape(), layout) {}
  Gradients views() { return {query.mutable_view(), key.mutable_view(), value.mutable_view()}; }
  bool SameBits(const GradientTensors& other) const {
    return query.memory() == other.query.memory() && key.memory() == other.key.memory() &&
           value.memory() == other.value.memory();
  }
};

/// `result`: what Attend gave for the call and plan.
inline GradientTensors Backward(const Call& call, const Result& result, const Upstream& upstream,
                                const GivenPlan& plan = nullptr,
                                Layout layout = Layout::kContiguous) {
  GradientTensors gradients(call, layout);
  const Shape& s = call.shape;
  attention_backward(call.arguments(), call.options, result.out.view(),
                     Contiguous<const void>(result.lse.data(), DType::kFloat32,
                                            {s.batch, s.query_heads, s.queries}),
                     upstream.out.view(), upstream.lse_view(call), gradients.views(), plan.get());
  return gradients;
}

struct ExactGradients {
  std::vector<double> query, key, value;
};

inline ExactGradients ReferenceBackward(const Call& call, const Upstream& upstream,
                                        const GivenPlan& plan = nullptr) {
  const auto size = [](const Tensor& tensor) {
    const Tensor::Index& s = tensor.shape();
    return std::vector<double>(static_cast<std::size_t>(s[0] * s[1] * s[2] * s[3]), kNaN);
  };
  ExactGradients exact{size(call.query), size(call.key), size(call.value)};
  reference_backward(call.arguments(), call.options, upstream.out.view(), upstream.lse_view(call),
                     exact.query.data(), exact.key.data(), exact.value.data(), plan.get());
  return exact;
}

/// What rounding may leave in the norm of a head's gradient.
struct GradientBound {
  double relative;  ///< of the exact gradient
  double absolute;  ///< of the gradient with all terms of one sign, as if one weight held all mass

  /// Weights err by the roundings of logits; delta by those of out, which are in its dtype.
  explicit GradientBound(DType dtype)
      : relative(2e-4 + 4.0 * UnitRoundoff(dtype)), absolute(4.0 * UnitRoundoff(dtype)) {}
};

/// Gradients of a head with all terms of one sign, as if one weight held all mass.
struct GradientSizes {
  const Call& call;
  const Upstream& upstream;

  /// The longest valid row of a key head.
  double Largest(const Tensor& tensor, std::int64_t b, std::int64_t g) const {
    double most = 0.0;
    for (std::int64_t j = 0; j < call.shape.keys; ++j) {
      if (call.IsValidKey(b, j)) most = std::max(most, tensor.RowNorm(b, g, j));
    }
    return std::isfinite(most) ? most : 0.0;
  }
  /// Root of the sum over queries of (2 |scale| |grad_out_i| max|v| + |grad_lse_i|) |x_i|; x_i is
  /// the query where `of_rows` is 0, else of that length.
  double ThroughLogits(std::int64_t b, std::int64_t h, double of_rows) const {
    const double value = Largest(call.value, b, call.KeyHead(h));
    double sum = 0.0;
    for (std::int64_t i = 0; i < call.shape.queries; ++i) {
      if (!call.IsValidQuery(b, i)) continue;
      const double of_lse = upstream.lse.empty() ? 0.0 : std::abs(upstream.lse[call.Row(b, h, i)]);
      const double x = of_rows > 0.0 ? of_rows : call.query.RowNorm(b, h, i);
      sum += std::pow((2.0 * upstream.out.RowNorm(b, h, i) * value + of_lse) * x, 2);
    }
    return std::abs(call.scale()) * std::sqrt(sum);
  }
  double OfQuery(std::int64_t b, std::int64_t h) const {
    return ThroughLogits(b, h, std::max(1e-30, Largest(call.key, b, call.KeyHead(h))));
  }
  double OfKey(std::int64_t b, std::int64_t g) const {
    return OverGroup(g, [&](std::int64_t h) { return ThroughLogits(b, h, 0.0); });
  }
  double OfValue(std::int64_t b, std::int64_t g) const {
    return OverGroup(g, [&](std::int64_t h) {
      double sum = 0.0;
      for (std::int64_t i = 0; i < call.shape.queries; ++i) {
        sum += call.IsValidQuery(b, i) ? std::pow(upstream.out.RowNorm(b, h, i), 2) : 0.0;
      }
      return std::sqrt(sum);
    });
  }

 private:
  /// Sum over the query heads of a key head.
  template <class OfHead>
  double OverGroup(std::int64_t g, const OfHead& of_head) const {
    const std::int64_t group = call.shape.query_heads / call.shape.key_heads;
    double sum = 0.0;
    for (std::int64_t h = g * group; h < (g + 1) * group; ++h) sum += of_head(h);
    return sum;
  }
};

/// One of the gradients: every head within the bound in Frobenius norm, exactly 0 at rows that take
/// no part, and NaN where the exact ones are. `size_of_head`(b, head) as GradientSizes have it.
template <class SizeOfHead, class TakesPart>
::testing::AssertionResult CloseGradient(const char* name, const Call& call, const Tensor& tensor,
                                         const std::vector<double>& expected,
                                         const SizeOfHead& size_of_head,
                                         const TakesPart& takes_part) {
  const GradientBound bound(call.query.dtype());
  const auto [batch, heads, rows, depth] = tensor.shape();
  // Subnormal results, and factors of sums, are rounded to multiples of the smallest.
  const Format format = FormatOf(tensor.dtype());
  const double subnormal = std::ldexp(1.0, format.min_exponent - format.precision) *
                           std::sqrt(static_cast<double>(rows * depth)) *
                           (1.0 + 16.0 * static_cast<double>(call.shape.queries + call.shape.keys));
  std::size_t at = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < heads; ++h) {
      double error = 0.0;
      double norm = 0.0;
      for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t c = 0; c < depth; ++c, ++at) {
          const double x = tensor.at(b, h, i, c);
          if (std::isnan(expected[at]) && std::isnan(x)) continue;
          if (!takes_part(b, h, i) && x != 0.0) {
            return ::testing::AssertionFailure() << name << " at b " << b << " h " << h << " i "
                                                 << i << ": got " << x << ", expected 0: " << call;
          }
          error += (x - expected[at]) * (x - expected[at]);
          norm += expected[at] * expected[at];
        }
      }
      const double allowed =
          subnormal + bound.relative * std::sqrt(norm) + bound.absolute * size_of_head(b, h);
      if (!(std::sqrt(error) <= allowed)) {
        return ::testing::AssertionFailure()
               << name << " at b " << b << " h " << h << ": error " << std::sqrt(error) << " of "
               << std::sqrt(norm) << ", allowed " << allowed << ": " << call;
      }
    }
  }
  return ::testing::AssertionSuccess();
}

/// All three of them.
inline ::testing::AssertionResult CloseGradients(const Call& call, const GradientTensors& got,
                                                 const ExactGradients& exact,
                                                 const Upstream& upstream) {
  const GradientSizes sizes{call, upstream};
  const auto is_valid_key = [&](auto b, auto, auto j) { return call.IsValidKey(b, j); };
  auto result = CloseGradient(
      "grad_query", call, got.query, exact.query,
      [&](auto b, auto h) { return sizes.OfQuery(b, h); },
      [&](auto b, auto h, auto i) { return !call.SeesNothing(b, h, i); });
  if (!result) return result;
  result = CloseGradient(
      "grad_key", call, got.key, exact.key, [&](auto b, auto g) { return sizes.OfKey(b, g); },
      is_valid_key);
  if (!result) return result;
  return CloseGradient(
      "grad_value", call, got.value, exact.value,
      [&](auto b, auto g) { return sizes.OfValue(b, g); }, is_valid_key);
}

}  // namespace smyrf::testing
