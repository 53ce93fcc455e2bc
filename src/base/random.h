// Random numbers that are the same everywhere: a counter-based generator and a normal transform of
// basic arithmetic only (libm's log and cos differ between vendors). Every sum of products is an
// explicit fma: where the hardware has one, a compiler may or may not fuse a * b + c by itself.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include "base/random_bits.h"

namespace smyrf {

/// A number of [low, high), from number `counter` of a stream.
inline std::int64_t RandomBetween(std::int64_t low, std::int64_t high, std::uint64_t seed,
                                  std::uint64_t stream, std::uint64_t counter) {
  const std::uint64_t bits = RandomBits(seed, stream, counter);
  return low + static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(high - low));
}

/// ln x for finite x > 0: 2 atanh((m - 1) / (m + 1)) with x = m 2^e and m near 1. Error below
/// 1e-15.
inline double PortableLog(double x) {
  int exponent = 0;
  double m = std::frexp(x, &exponent);  // in [1/2, 1)
  if (m < 0.70710678118654752) {
    m *= 2.0;
    --exponent;
  }
  const double t = (m - 1.0) / (m + 1.0);  // |t| < 0.1716
  double sum = 0.0;
  for (int k = 21; k >= 1; k -= 2) sum = std::fma(sum, t * t, 1.0 / k);
  return std::fma(exponent, std::numbers::ln2, 2.0 * t * sum);
}

/// Standard normal numbers by Marsaglia's polar method (1964).
class NormalStream {
 public:
  NormalStream(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {}

  double Next() {
    for (;;) {
      const double u = Uniform();
      const double v = Uniform();
      const double s = std::fma(u, u, v * v);
      if (s > 0.0 && s < 1.0) return u * std::sqrt(-2.0 * PortableLog(s) / s);
    }
  }

 private:
  /// In (-1, 1), a multiple of 2^-52.
  double Uniform() {
    const std::uint64_t bits = RandomBits(seed_, stream_, counter_++) >> 11;
    return static_cast<double>(bits) * 0x1p-52 - 1.0;
  }

  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t counter_ = 0;
};

}  // namespace smyrf
