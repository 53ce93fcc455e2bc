// Random numbers for tests: the same everywhere (the standard library's distributions are not).
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <random>

namespace smyrf::testing {

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  /// From [0, count).
  std::int64_t Below(std::int64_t count) {
    return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(count));
  }
  /// From [first, last].
  std::int64_t Between(std::int64_t first, std::int64_t last) {
    return first + Below(last - first + 1);
  }
  bool Chance(double probability) { return Uniform() < probability; }
  /// From (0, 1).
  double Uniform() { return (static_cast<double>(engine_() >> 11) + 0.5) * 0x1p-53; }
  double Normal() {
    return std::sqrt(-2.0 * std::log(Uniform())) * std::cos(6.283185307179586 * Uniform());
  }
  template <class T>
  T Of(std::initializer_list<T> choices) {
    return *std::next(choices.begin(), Below(static_cast<std::int64_t>(choices.size())));
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace smyrf::testing
