#include "run/dense_ranges.h"

#include <algorithm>

namespace smyrf {

DenseRanges RangesOfBlock(const Mask& mask, std::span<const std::int32_t> valid_keys,
                          std::int64_t first_query, std::int64_t last_query, std::int64_t begin,
                          std::int64_t end) {
  // Index in the key order of the first key at or after a position.
  const auto at = [&](std::int64_t position) {
    const std::int64_t index =
        valid_keys.empty()
            ? position
            : std::lower_bound(valid_keys.begin(), valid_keys.end(), position) - valid_keys.begin();
    return std::clamp(index, begin, end);
  };
  // Both bounds of the visible interval grow with the query's position.
  const std::int64_t some_begin = at(mask.First(first_query));
  const std::int64_t some_end = at(mask.Last(last_query));
  const std::int64_t all_begin = std::min(at(mask.First(last_query)), some_end);
  const std::int64_t all_end = std::max(at(mask.Last(first_query)), all_begin);

  DenseRanges result;
  const auto add = [&](std::int64_t from, std::int64_t to, bool partial) {
    if (from < to) {
      result.partial[result.count] = partial;
      result.ranges[result.count++] = {static_cast<std::int32_t>(from),
                                       static_cast<std::int32_t>(to)};
    }
  };
  if (mask.bias.data != nullptr || all_begin >= all_end) {
    add(some_begin, some_end, true);
  } else {
    add(some_begin, all_begin, true);
    add(all_begin, all_end, false);
    add(all_end, some_end, true);
  }
  return result;
}

}  // namespace smyrf
