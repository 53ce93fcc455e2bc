// A block's tiles of keys, as attention and its gradients walk over them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "base/workspace.h"
#include "simd/kernels.h"

namespace smyrf::kernels {

/// Keys a tile: scores of 64 queries by 128 keys and 128 rows of k and of v at D = 64 are 96 KB.
inline constexpr std::int64_t kTileKeys = 128;
inline constexpr float kLog2E = 1.44269504088896340736F;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// An additive mask's value in the logits' base. Finite ones stay finite, or a row masked by the
/// most negative float alone would become a row that sees nothing; NaN and infinities pass.
inline float BiasInBase2(float bias) {
  constexpr float kMax = std::numeric_limits<float>::max();
  return std::isfinite(bias) ? std::clamp(bias * kLog2E, -kMax, kMax) : bias;
}

/// What ForTiles sets for each tile, and what it and MaskScores work with.
struct TileScratch {
  Buffer key_rows, value_rows, bias;
  const float* keys[kTileKeys];
  const float* values[kTileKeys];
  const float* queries[kBlockRows];
  std::int32_t key_positions[kTileKeys];
  std::int64_t bytes() const { return BytesOf(key_rows, value_rows, bias); }
};

}  // namespace smyrf::kernels
