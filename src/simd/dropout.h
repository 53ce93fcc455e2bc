// Which pairs dropout keeps: a function of seed and positions alone, so that forward, backward, any
// plan and calls over parts of a sequence agree.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/random_bits.h"
#include "smyrf/options.h"

namespace smyrf {

/// A query's words, which one 64-bit number of its stream gives.
struct DropoutRow {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
};

struct Dropout {
  std::uint64_t seed = 0;
  std::uint32_t threshold = 0;  ///< a pair whose bits are below is dropped
  float factor = 1.0F;          ///< 1 / (1 - p), of a pair that is kept; 0 where none is
  Positions first;              ///< of the call's query 0 and key 0

  Dropout() = default;
  Dropout(double p, std::uint64_t seed_, const Positions& first_ = {})
      : seed(seed_),
        threshold(static_cast<std::uint32_t>(
            std::min(p * 0x1p32, static_cast<double>(std::numeric_limits<std::uint32_t>::max())))),
        factor(p < 1.0 ? static_cast<float>(1.0 / (1.0 - p)) : 0.0F),
        first(first_) {}

  bool active() const { return threshold > 0; }

  /// Of a query by its index in the call, as `Of` takes keys.
  DropoutRow Row(std::int64_t batch, std::int64_t head, std::int64_t query) const {
    constexpr std::uint64_t kStream = std::uint64_t{1} << 63;  // apart from the planners' streams
    const std::uint64_t stream =
        kStream | static_cast<std::uint64_t>(batch) << 31 | static_cast<std::uint64_t>(head);
    const std::uint64_t bits =
        RandomBits(seed, stream, static_cast<std::uint64_t>(first.first_query + query));
    // `Of` adds kStep times the key's index: what the keys before the call's would have added.
    const std::uint32_t before = static_cast<std::uint32_t>(first.first_key) * kStep;
    return {static_cast<std::uint32_t>(bits) + before, static_cast<std::uint32_t>(bits >> 32)};
  }

  static constexpr std::uint32_t kStep = 0x9E3779B9U;
  static constexpr std::uint32_t kFirst = 0x21F0AAADU;
  static constexpr std::uint32_t kSecond = 0xD35A2D97U;

  /// What a pair's weight is multiplied by: 0 or `factor`. Two multiplicative rounds (constants by
  /// search for low bias, github.com/skeeto/hash-prospector), the row's second word between them.
  float Of(const DropoutRow& row, std::int64_t key) const {
    std::uint32_t x = row.low + static_cast<std::uint32_t>(key) * kStep;
    x = (x ^ (x >> 16)) * kFirst;
    x ^= row.high;
    x = (x ^ (x >> 15)) * kSecond;
    x ^= x >> 15;
    return x < threshold ? 0.0F : factor;
  }
};

}  // namespace smyrf
