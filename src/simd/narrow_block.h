// What a narrow block works in.
#pragma once

#include <cstdint>

#include "base/workspace.h"
#include "simd/block.h"

namespace smyrf::kernels {

/// Keys a tile, an even number.
inline constexpr std::int64_t kNarrowTileKeys = 128;

struct NarrowScratch : TileScratch {
  Buffer q, columns, scores, out, result, state;
  std::int64_t bytes() const {
    return TileScratch::bytes() + BytesOf(q, columns, scores, out, result, state);
  }
};

}  // namespace smyrf::kernels
