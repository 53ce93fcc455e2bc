// How far a float32 executor may be from the float64 reference, derived from its arithmetic.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "testing/call.h"

namespace smyrf::testing {

/// Growth of n accumulated roundings, in units of u. The worst case is n; independent roundings
/// stay below lambda sqrt(n) but with probability 2 exp(-lambda^2 / 2) (Higham & Mary 2019),
/// lambda = 7: once in 10^10 sums.
inline double Growth(double n) { return std::min(n, 7.0 * std::sqrt(n)); }

/// With u = 2^-24, and for one query row:
///   A  bounds scale sum_c |q_c k_c| (Cauchy-Schwarz: scale |q| max|k|), Bias bounds |bias|,
///   n  keys that may be summed over, M  merges of partial results (rounds or splits of the keys).
/// Logit: D products and sums, and roundings of scale, scale * log2(e) and the product with q:
///   Growth(D + 4) u A. Adding the bias and subtracting the maximum round results of at most
///   2 (A + Bias) log2(e), in all 6 (A + Bias) u in nats.
/// Weight: 2^x has relative error 2e-7 < 3.5 u (exp_test.cc), once for the weight and once for
///   every time the maximum moves: at most once a tile of at least 64 keys, and once a range.
/// Sums of n weights and of n products: Growth(n + tiles) u each. Normalising: 2 u.
/// A merge: its weights' exponents are wrong by the roundings of two lse (of size at most
///   A + Bias + ln n) and one subtraction, its exp, sums and quotients by 6 u.
/// If every unnormalised weight has relative error at most e, the weighted mean of v is off by at
/// most 2 e max|v|. lse is off by e and its own three roundings.
struct Bound {
  double out = 0.0;  ///< before rounding to the dtype of out
  double lse = 0.0;

  Bound(double depth, double keys, double logit, double bias, double value, double merges) {
    const double u = UnitRoundoff(DType::kFloat32);
    const double size = logit + bias;
    const double tiles = keys / 64.0 + 4.0;
    const double largest_lse = size + std::log(keys + 1.0);
    const double weight = u * (Growth(depth + 4.0) * logit + 6.0 * size + 3.5 * (1.0 + tiles) +
                               Growth(keys + tiles) + 2.0 + merges * (6.0 + 3.0 * largest_lse));
    // Weights below 2^-126 are dropped, products below 2^-126 may be.
    out = 2.0 * weight * value + 1e-36 * (keys + depth) * (1.0 + value);
    lse = weight + 4.0 * u * (largest_lse + 1.0);
  }
};

/// |out - exact| and |lse - exact| within the bound for every element; NaN where exact is NaN; and
/// exactly 0 and -inf for every query that the masks let see nothing.
inline ::testing::AssertionResult Close(const Call& call, const Result& result, const Exact& exact,
                                        double merges) {
  const Shape& s = call.shape;
  const DType dtype = call.query.dtype();
  const auto failure = [&](const char* what, std::int64_t b, std::int64_t h, std::int64_t i,
                           std::int64_t c, double got, double expected, double bound) {
    return ::testing::AssertionFailure()
           << what << " at b " << b << " h " << h << " i " << i << " c " << c << ": got " << got
           << ", expected " << expected << " up to " << bound << " for " << call;
  };
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.query_heads; ++h) {
      double largest_key = 0.0;
      double largest_value = 0.0;
      for (std::int64_t j = 0; j < s.keys; ++j) {
        if (!call.IsValidKey(b, j)) continue;
        const double norm = call.key.RowNorm(b, call.KeyHead(h), j);
        largest_key = std::max(largest_key, std::isfinite(norm) ? norm : 0.0);
        for (std::int64_t c = 0; c < s.value_depth; ++c) {
          const double value = std::abs(call.value.at(b, call.KeyHead(h), j, c));
          largest_value = std::max(largest_value, std::isfinite(value) ? value : 0.0);
        }
      }
      for (std::int64_t i = 0; i < s.queries; ++i) {
        const std::size_t row = call.Row(b, h, i);
        const double lse = result.lse[row];
        const bool nothing = call.SeesNothing(b, h, i);
        double bias = 0.0;
        for (std::int64_t j = 0; j < s.keys && !nothing; ++j) {
          const double added = call.Bias(b, h, i, j);
          if (std::isfinite(added)) bias = std::max(bias, std::abs(added));
        }
        const double logit =
            nothing ? 0.0 : std::abs(call.scale()) * call.query.RowNorm(b, h, i) * largest_key;
        const Bound bound(static_cast<double>(s.depth), static_cast<double>(s.keys), logit, bias,
                          largest_value, merges);
        const double exact_lse = nothing ? -kInfinity : exact.lse[row];
        const bool lse_is_close =
            std::isfinite(exact_lse)
                ? std::abs(lse - exact_lse) <= bound.lse
                : std::isnan(exact_lse) == std::isnan(lse) && (std::isnan(lse) || lse == exact_lse);
        if (!lse_is_close) return failure("lse", b, h, i, 0, lse, exact_lse, bound.lse);
        for (std::int64_t c = 0; c < s.value_depth; ++c) {
          const double expected = nothing
                                      ? 0.0
                                      : exact.out[row * static_cast<std::size_t>(s.value_depth) +
                                                  static_cast<std::size_t>(c)];
          const double got = result.out.at(b, h, i, c);
          if (nothing ? got == 0.0 : std::isnan(expected) && std::isnan(got)) continue;
          // Half a unit of the output's last place, subnormals included.
          const Format format = FormatOf(dtype);
          const double rounding = dtype == DType::kFloat32
                                      ? 0.0
                                      : std::ldexp(1.0, format.min_exponent - format.precision) +
                                            UnitRoundoff(dtype) * (std::abs(expected) + bound.out);
          if (!(std::abs(got - expected) <= bound.out + rounding) || nothing) {
            return failure("out", b, h, i, c, got, expected, bound.out + rounding);
          }
        }
      }
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace smyrf::testing
