// Tiles of keys of a block, and masks over their scores.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "simd/block.h"
#include "simd/convert-inl.h"

#if defined(SMYRF_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_BLOCK_INL_H_
#undef SMYRF_BLOCK_INL_H_
#else
#define SMYRF_BLOCK_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Calls body(count, partial) for tiles of at most kTileKeys keys, in order, with scratch's keys,
/// values and, for partial tiles or where `positions` says so, key_positions set.
template <class Body>
HWY_INLINE void ForTiles(const BlockTask& task, bool positions, TileScratch& scratch,
                         const Body& body) {
  for (std::size_t r = 0; r < task.ranges.size(); ++r) {
    const KeyRange range = task.ranges[r];
    const bool partial = !task.partial.empty() && task.partial[r];
    for (std::int64_t begin = range.begin; begin < range.end; begin += kTileKeys) {
      const std::int64_t count = std::min<std::int64_t>(kTileKeys, range.end - begin);
      FloatRows(task.key, begin, count, task.depth, scratch.key_rows, scratch.keys);
      FloatRows(task.value, begin, count, task.value_depth, scratch.value_rows, scratch.values);
      if (partial || positions) {
        for (std::int64_t j = 0; j < count; ++j) {
          scratch.key_positions[j] = static_cast<std::int32_t>(task.key.Position(begin + j));
        }
      }
      body(count, partial);
    }
  }
}

/// -inf for the pairs that causality and window forbid, what attn_mask adds for the others; marks
/// the lanes that saw an allowed key. Lanes past the block's rows hold anything.
HWY_INLINE void MaskScores(const BlockTask& task, const std::int32_t* positions, std::int64_t count,
                           std::int64_t vectors, TileScratch& scratch, const std::int32_t* first,
                           const std::int32_t* last, float* s, float* seen) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto minus_infinity = hn::Set(d, -kInfinity);
  const Mask& mask = *task.mask;
  const float* bias = nullptr;
  if (mask.bias.data != nullptr) {
    const std::int64_t rows = task.query_end - task.query_begin;
    const std::int64_t step = mask.bias.strides[3] * SizeOf(mask.bias.dtype);
    const bool run = mask.bias.strides[3] == 1 && positions[count - 1] - positions[0] == count - 1;
    float* by_query = scratch.bias.Need(static_cast<std::size_t>(2 * kBlockRows * kTileKeys));
    float* by_key = by_query + kBlockRows * kTileKeys;
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::byte* row =
          mask.BiasAt(task.batch, task.head, task.query.Position(task.query_begin + i), 0);
      float* to = by_query + i * kTileKeys;
      if (run) {
        LoadRow(row + positions[0] * step, mask.bias.dtype, count, to);
      } else {
        for (std::int64_t j = 0; j < count; ++j) {
          to[j] = LoadElement(row + positions[j] * step, mask.bias.dtype);
        }
      }
      scratch.queries[i] = to;
    }
    TransposeRows(scratch.queries, rows, count, 1.0F, kBlockRows, by_key);
    bias = by_key;
  }
  for (std::int64_t j = 0; j < count; ++j) {
    const auto position = hn::Set(di, positions[j]);
    for (std::int64_t c = 0; c < vectors; ++c) {
      const std::int64_t at = j * kBlockRows + c * lanes;
      const auto inside = hn::AndNot(hn::Lt(position, hn::LoadU(di, first + c * lanes)),
                                     hn::Lt(position, hn::LoadU(di, last + c * lanes)));
      auto allowed = hn::RebindMask(d, inside);
      auto score = hn::LoadU(d, s + at);
      if (bias != nullptr) {
        const auto added = hn::LoadU(d, bias + at);
        // As BiasInBase2.
        const auto most = hn::Set(d, std::numeric_limits<float>::max());
        const auto in_base_2 =
            hn::Min(most, hn::Max(hn::Neg(most), hn::Mul(added, hn::Set(d, kLog2E))));
        const auto passes = hn::And(hn::Eq(added, added), hn::Lt(added, hn::Set(d, kInfinity)));
        // Not Ne: of NaN, which must pass on, its answer differs between instruction sets.
        allowed = hn::AndNot(hn::Eq(added, minus_infinity), allowed);
        score = hn::Add(score, hn::IfThenElse(passes, in_base_2, added));
      }
      hn::StoreU(hn::IfThenElse(allowed, score, minus_infinity), d, s + at);
      const auto was = hn::LoadU(d, seen + c * lanes);
      hn::StoreU(hn::IfThenElse(allowed, hn::Set(d, 1.0F), was), d, seen + c * lanes);
    }
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_BLOCK_INL_H_
