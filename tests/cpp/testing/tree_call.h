// Calls of `tree` and what it promises of out and lse against dense attention.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "testing/bounds.h"
#include "testing/random_call.h"

namespace smyrf::testing {

/// A logit of a summary has more roundings than a key's: its mean key and its variance are sums.
inline constexpr double kMerges = 4.0;

inline Call TreeCall(const Shape& shape, double tolerance, DType dtype = DType::kFloat32) {
  Call call(shape, dtype);
  call.options.method = Method::kTree;
  call.options.tolerance = tolerance;
  return call;
}

inline Call AsDense(Call call) {
  call.options.method = Method::kDense;
  call.options.tolerance.reset();
  call.options.max_density.reset();
  call.options.seed = 0;
  return call;
}

/// Of one head: error of out as the contract defines it, and RMS error of lse in nats.
struct Errors {
  double out = 0.0;
  double lse = 0.0;
};

inline Errors ErrorsOf(const Call& call, const Result& result, const Exact& dense, std::int64_t b,
                       std::int64_t h) {
  const auto dv = static_cast<std::size_t>(call.shape.value_depth);
  double queries = 0.0;
  double difference = 0.0;
  double size = 0.0;
  double lse = 0.0;
  for (std::int64_t i = 0; i < call.shape.queries; ++i) {
    if (!call.IsValidQuery(b, i)) continue;
    const std::size_t row = call.Row(b, h, i);
    queries += 1.0;
    lse += std::pow(static_cast<double>(result.lse[row]) - dense.lse[row], 2);
    for (std::size_t c = 0; c < dv; ++c) {
      const double exact = dense.out[row * dv + c];
      difference += std::pow(result.out.at(b, h, i, static_cast<std::int64_t>(c)) - exact, 2);
      size += exact * exact;
    }
  }
  double keys = 0.0;
  double variance = 0.0;
  for (std::size_t c = 0; c < dv; ++c) {
    keys = 0.0;
    double sum = 0.0;
    double squares = 0.0;
    for (std::int64_t j = 0; j < call.shape.keys; ++j) {
      if (!call.IsValidKey(b, j)) continue;
      const double v = call.value.at(b, call.KeyHead(h), j, static_cast<std::int64_t>(c));
      keys += 1.0;
      sum += v;
      squares += v * v;
    }
    variance += std::max(0.0, squares / keys - sum * sum / (keys * keys));
  }
  const double least = 1e-4 * variance * queries;
  const double denominator = std::max(size, least);
  return {difference == 0.0 ? 0.0 : std::sqrt(difference / denominator),
          std::sqrt(lse / std::max(queries, 1.0))};
}

/// Every head expects to meet the tolerance and errs by at most 1.5 times as much (calibration sees
/// a sample of the queries) against float64 dense attention; returns how many are not dense.
inline int ExpectTolerance(const Call& call) {
  const Exact dense = RunReference(AsDense(call));
  const Result result = Attend(call);
  const double rounding = 16.0 * UnitRoundoff(call.query.dtype()) + 1e-5;
  int sparse = 0;
  for (std::int64_t b = 0; b < call.shape.batch; ++b) {
    for (std::int64_t h = 0; h < call.shape.query_heads; ++h) {
      const auto& head =
          result.statistics.heads[static_cast<std::size_t>(b * call.shape.query_heads + h)];
      EXPECT_FALSE(head.non_finite) << call;
      const Errors errors = ErrorsOf(call, result, dense, b, h);
      const double tolerance =
          head.dense ? 0.0 : call.options.tolerance.value_or(kDefaultTolerance);
      EXPECT_LE(errors.out, 1.5 * tolerance + rounding) << b << " " << h << ": " << call;
      EXPECT_LE(errors.lse, 1.5 * tolerance + 1e-4) << b << " " << h << ": " << call;
      EXPECT_LE(head.expected_error, tolerance) << call;
      EXPECT_LE(head.expected_lse_error, tolerance) << call;
      EXPECT_EQ(head.density == 1.0, head.dense) << call;
      sparse += head.dense ? 0 : 1;
    }
  }
  return sparse;
}

}  // namespace smyrf::testing
