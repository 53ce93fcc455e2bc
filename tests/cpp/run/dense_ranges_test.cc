// Exact: the implicit ranges of a dense plan, pair by pair.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "run/dense_ranges.h"
#include "simd/mask.h"
#include "testing/random.h"

namespace smyrf::testing {
namespace {

struct Sequence {
  std::int64_t queries = 0, keys = 0;
  bool is_causal = false;
  std::optional<Window> window;

  /// The contract's sentence: both align with the lower right corner.
  bool Allowed(std::int64_t i, std::int64_t j) const {
    const std::int64_t diagonal = i + keys - queries;
    return (!is_causal || j <= diagonal) &&
           (!window || window->left < 0 || j >= diagonal - window->left) &&
           (!window || window->right < 0 || j <= diagonal + window->right);
  }
};

Sequence RandomSequence(Random& random) {
  Sequence s;
  s.queries = random.Between(1, 60);
  s.keys = random.Chance(0.3) ? s.queries : random.Between(1, 80);
  s.is_causal = random.Chance(0.5);
  const auto side = [&] {
    return random.Of<std::int64_t>({-1, 0, 1, 5, 20, 1000, std::int64_t{1} << 62});
  };
  if (random.Chance(0.6)) s.window = Window{side(), side()};
  return s;
}

TEST(Mask, IntervalOfAQueryIsTheContracts) {
  Random random(20);
  for (int n = 0; n < 500; ++n) {
    const Sequence s = RandomSequence(random);
    const Mask mask(s.queries, s.keys, s.is_causal, s.window, {});
    for (std::int64_t i = 0; i < s.queries; ++i) {
      for (std::int64_t j = 0; j < s.keys; ++j) {
        ASSERT_EQ(j >= mask.First(i) && j < mask.Last(i), s.Allowed(i, j)) << i << " " << j;
        ASSERT_EQ(mask.Bias(0, 0, i, j) == 0.0F, s.Allowed(i, j));
      }
    }
  }
}

TEST(DenseRanges, EveryAllowedKeyOnceAndFullMeansAll) {
  Random random(21);
  for (int n = 0; n < 3000; ++n) {
    const Sequence s = RandomSequence(random);
    const bool has_bias = random.Chance(0.2);
    const float bias = 0.0F;
    const TensorView bias_view{&bias, DType::kFloat32, 4, {1, 1, s.queries, s.keys}, {0, 0, 0, 0}};
    const Mask mask(s.queries, s.keys, s.is_causal, s.window, has_bias ? bias_view : TensorView{});
    std::vector<std::int32_t> valid;  // empty: all keys
    if (random.Chance(0.5)) {
      for (std::int32_t j = 0; j < s.keys; ++j) {
        if (random.Chance(0.6)) valid.push_back(j);
      }
      if (valid.empty()) valid.push_back(0);
    }
    const auto count = valid.empty() ? s.keys : static_cast<std::int64_t>(valid.size());
    const auto position = [&](std::int64_t index) {
      return valid.empty() ? index : valid[static_cast<std::size_t>(index)];
    };
    const std::int64_t begin = random.Chance(0.7) ? 0 : random.Below(count + 1);
    const std::int64_t end = random.Chance(0.7) ? count : random.Between(begin, count);
    const std::int64_t first = random.Below(s.queries);
    const std::int64_t last = std::min(s.queries - 1, first + random.Below(20));
    const DenseRanges ranges = RangesOfBlock(mask, valid, first, last, begin, end);
    ASSERT_LE(ranges.count, 3U);
    std::int64_t after = begin;  // ranges ascend and lie in [begin, end)
    for (std::size_t r = 0; r < ranges.count; ++r) {
      const KeyRange& range = ranges.ranges[r];
      ASSERT_GE(range.begin, after);
      ASSERT_LT(range.begin, range.end);
      ASSERT_LE(range.end, end);
      after = range.end;
      ASSERT_TRUE(ranges.partial[r] || !has_bias);
    }
    for (std::int64_t i = first; i <= last; ++i) {
      for (std::int64_t index = begin; index < end; ++index) {
        int times = 0;
        bool full = false;
        for (std::size_t r = 0; r < ranges.count; ++r) {
          const KeyRange& range = ranges.ranges[r];
          if (index < range.begin || index >= range.end) continue;
          ++times;
          full = full || !ranges.partial[r];
        }
        const bool allowed = s.Allowed(i, position(index));
        ASSERT_LE(times, 1);
        ASSERT_TRUE(times == 1 || !allowed) << "query " << i << " key " << position(index);
        ASSERT_TRUE(allowed || !full) << "query " << i << " key " << position(index);
      }
    }
    // No work for nothing: a range starts and ends with a key that some query of the block sees.
    for (const KeyRange& range : ranges.span()) {
      const auto seen = [&](std::int64_t index) {
        for (std::int64_t i = first; i <= last; ++i) {
          if (s.Allowed(i, position(index))) return true;
        }
        return false;
      };
      ASSERT_TRUE(seen(range.begin) && seen(range.end - 1));
    }
  }
}

}  // namespace
}  // namespace smyrf::testing
