// The implicit ranges of a dense plan: computed a block at a time, never stored.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "simd/mask.h"
#include "smyrf/plan.h"

namespace smyrf {

/// At most three ranges: keys that some, all and again only some of the block's queries see.
struct DenseRanges {
  std::array<KeyRange, 3> ranges{};
  std::array<bool, 3> partial{};  ///< whether some (query, key) of the range is masked
  std::size_t count = 0;
  std::span<const KeyRange> span() const { return {ranges.data(), count}; }
};

/// The keys that queries at positions first_query <= last_query may see, cut to [begin, end) of the
/// key order. `valid_keys`: positions of the keys, ascending; empty: key i is at position i.
DenseRanges RangesOfBlock(const Mask& mask, std::span<const std::int32_t> valid_keys,
                          std::int64_t first_query, std::int64_t last_query, std::int64_t begin,
                          std::int64_t end);

}  // namespace smyrf
