// The counter-based generator that all random choices come from.
#pragma once

#include <cstdint>

namespace smyrf {

/// Number `counter` of the stream (seed, stream): two rounds of SplitMix64's finaliser (Steele, Lea
/// & Flood 2014), which is a bijection of well mixed bits.
inline std::uint64_t RandomBits(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  const auto mix = [](std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
  };
  constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15U;
  return mix(mix(mix(seed + kGolden) + stream * kGolden) + (counter + 1) * kGolden);
}

}  // namespace smyrf
