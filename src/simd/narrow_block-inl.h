// AttendBlock's streaming softmax with narrow products. `Dots` is what a kind of processor has:
//   Bytes(sum, q, k), Halves(sum, q, k)  sums of int32, as a vector of floats holds them, plus four
//       or two products a lane: of unsigned and signed bytes, of signed halves
//   BFloats(sum, p, v)                   sums of float32 plus two products of bfloat16 a lane
//   Pair(even, odd)                      two vectors of float32 as pairs of bfloat16
//   PowersOfTwo                          powers whose exponents are multiples of 1/64
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "simd/block-inl.h"
#include "simd/convert-inl.h"
#include "simd/exp-inl.h"
#include "simd/narrow-inl.h"
#include "simd/narrow.h"
#include "simd/narrow_block.h"
#include "simd/tile-inl.h"

#if defined(SMYRF_NARROW_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_NARROW_BLOCK_INL_H_
#undef SMYRF_NARROW_BLOCK_INL_H_
#else
#define SMYRF_NARROW_BLOCK_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Tells GCC that sums which begin alike are apart: it would copy each before and after the loop
// that adds to them, every time around.
#define SMYRF_APART(vector) asm("" : "+v"((vector).raw))

/// s[r][lanes] = step[r] * sum over words of products: kRows keys by kCols vectors of queries,
/// whose own steps are still to be multiplied with. `most` becomes the larger of itself and these.
template <class Dots, bool kBytes, int kRows, int kCols>
HWY_INLINE void NarrowScores(const NarrowKeys& keys, std::int64_t row, const std::int32_t* q,
                             std::int64_t words, float* s, float* most) {
  const FloatTag d;
  const IntTag di;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  FloatVector sum[kRows][kCols];
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) {
    SMYRF_UNROLL
    for (int c = 0; c < kCols; ++c) {
      sum[r][c] = hn::BitCast(d, kBytes ? hn::Set(di, keys.offsets[row + r]) : hn::Zero(di));
      SMYRF_APART(sum[r][c]);
    }
  }
  const std::byte* key = keys.numbers + row * keys.stride;
  SMYRF_UNROLL_STEPS
  for (std::int64_t w = 0; w < words; ++w) {
    IntVector x[kCols];
    SMYRF_UNROLL
    for (int c = 0; c < kCols; ++c) x[c] = hn::LoadU(di, q + w * kBlockRows + c * lanes);
    SMYRF_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const auto k = hn::Set(di, *reinterpret_cast<const std::int32_t*>(key + r * keys.stride));
      SMYRF_UNROLL
      for (int c = 0; c < kCols; ++c) {
        sum[r][c] = kBytes ? Dots::Bytes(sum[r][c], x[c], k) : Dots::Halves(sum[r][c], x[c], k);
      }
    }
    key += sizeof(std::int32_t);
    SMYRF_NO_INDEX(key);
  }
  SMYRF_UNROLL
  for (int c = 0; c < kCols; ++c) {
    auto largest = hn::LoadU(d, most + c * lanes);
    SMYRF_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const auto score =
          hn::Mul(hn::ConvertTo(d, hn::BitCast(di, sum[r][c])), hn::Set(d, keys.steps[row + r]));
      largest = hn::Max(largest, score);
      hn::StoreU(score, d, s + r * kBlockRows + c * lanes);
    }
    hn::StoreU(largest, d, most + c * lanes);
  }
}

template <class Dots, bool kBytes>
struct NarrowScorePanels {
  static constexpr int PanelRows(int vectors) { return RowsApart(vectors); }
  static constexpr bool kNarrow = true;
  const NarrowKeys& keys;
  std::int64_t first;
  const std::int32_t* q;
  std::int64_t words;
  float* s;
  float* most;
  template <int kRows, int kCols>
  HWY_INLINE void Run(std::int64_t row, std::int64_t vector) const {
    const std::int64_t at = vector * static_cast<std::int64_t>(hn::Lanes(FloatTag()));
    NarrowScores<Dots, kBytes, kRows, kCols>(keys, first + row, q + at, words,
                                             s + row * kBlockRows + at, most + at);
  }
};

/// o[r][lanes] = o[r][lanes] * rescale[lanes] + sum over pairs of keys: kRows value columns by
/// kCols vectors of queries.
template <class Dots, int kRows, int kCols>
HWY_INLINE void NarrowValues(const std::uint32_t* pairs, std::int64_t depth, const std::int32_t* p,
                             std::int64_t count, const float* rescale, float* o) {
  const FloatTag d;
  const IntTag di;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  FloatVector sum[kRows][kCols];
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FloatVector factor[kCols];
    LoadVectors(rescale, factor);
    LoadVectors(o + r * kBlockRows, sum[r]);
    SMYRF_UNROLL
    for (int c = 0; c < kCols; ++c) sum[r][c] = hn::Mul(sum[r][c], factor[c]);
  }
  SMYRF_UNROLL_STEPS
  for (std::int64_t j = 0; j < count; ++j) {
    IntVector x[kCols];
    SMYRF_UNROLL
    for (int c = 0; c < kCols; ++c) x[c] = hn::LoadU(di, p + j * kBlockRows + c * lanes);
    SMYRF_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const auto v = hn::Set(di, static_cast<std::int32_t>(pairs[r]));
      SMYRF_UNROLL
      for (int c = 0; c < kCols; ++c) sum[r][c] = Dots::BFloats(sum[r][c], x[c], v);
    }
    pairs += depth;
    SMYRF_NO_INDEX(pairs);
  }
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) StoreVectors(sum[r], o + r * kBlockRows);
}

template <class Dots>
struct NarrowValuePanels {
  static constexpr int PanelRows(int vectors) { return RowsTogether(vectors); }
  static constexpr bool kNarrow = true;
  const std::uint32_t* pairs;
  std::int64_t depth;
  const std::int32_t* p;
  std::int64_t count;
  const float* rescale;
  float* o;
  template <int kRows, int kCols>
  HWY_INLINE void Run(std::int64_t row, std::int64_t vector) const {
    const std::int64_t at = vector * static_cast<std::int64_t>(hn::Lanes(FloatTag()));
    NarrowValues<Dots, kRows, kCols>(pairs + row, depth, p + at, count, rescale + at,
                                     o + row * kBlockRows + at);
  }
};

/// The running softmax of a block, a lane a query: in base 2, so that exp is exp2.
struct NarrowState {
  float* max;      ///< largest logit so far, -inf at first
  float* sum;      ///< sum of 2^(logit - max)
  float* seen;     ///< not 0 where a key was allowed
  float* rescale;  ///< what the last tile multiplies older sums by
  float* most;     ///< largest scores of the tile
  float* steps;    ///< what scores are to be multiplied with
  float* ones;
  std::int32_t first_key[kBlockRows];  ///< that causality and window let see
  std::int32_t last_key[kBlockRows];
};

/// Keys [first, first + count) of a range, of which the first `before` are none of its own.
struct NarrowTile {
  std::int64_t first;
  std::int64_t count;
  std::int64_t before;
  std::int64_t vectors;  ///< of queries
};

/// The weights' exponents are multiples of 1 / kParts.
inline constexpr float kParts = 64.0F;

/// Scores of pairs of keys become pairs of weights, in place: rows 2j and 2j + 1 of floats row j of
/// words. `steps` is what the scores still are to be multiplied with. kExact: for scores that may
/// be NaN or infinite.
template <class Dots, bool kExact>
HWY_INLINE void NarrowWeights(std::int64_t pairs, std::int64_t vectors, const float* steps,
                              const NarrowState& state, float* s) {
  const FloatTag d;
  const IntTag di;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto minus_infinity = hn::Set(d, -kInfinity);
  const typename Dots::PowersOfTwo powers;
  const auto ones = hn::Set(di, 0x3F803F80);
  for (std::int64_t c = 0; c < vectors * lanes; c += lanes) {
    const auto old_max = hn::LoadU(d, state.max + c);
    const auto step = hn::LoadU(d, steps + c);
    const auto new_max = hn::Max(old_max, hn::Mul(hn::LoadU(d, state.most + c), step));
    const auto base = hn::IfThenElse(hn::Eq(new_max, minus_infinity), hn::Zero(d), new_max);
    const auto rescale = Exp2(d, hn::Sub(old_max, base));
    auto total = hn::Mul(hn::LoadU(d, state.sum + c), rescale);
    const float* from = s + c;
    auto* to = reinterpret_cast<std::int32_t*>(s + c);
    if constexpr (kExact) {
      for (std::int64_t j = 0; j < pairs; ++j) {
        const auto p0 = Exp2(d, hn::MulSub(hn::LoadU(d, from), step, base));
        const auto p1 = Exp2(d, hn::MulSub(hn::LoadU(d, from + kBlockRows), step, base));
        total = hn::Add(total, hn::Add(p0, p1));
        hn::StoreU(Dots::Pair(p0, p1), di, to);
        from += 2 * kBlockRows;
        to += kBlockRows;
      }
    } else {
      const auto part_step = hn::Mul(step, hn::Set(d, kParts));
      const auto part_base = hn::Mul(base, hn::Set(d, kParts));
      const auto lowest = hn::Set(d, -127.0F * kParts);  // gives 0
      for (std::int64_t j = 0; j < pairs; ++j) {
        const auto x0 = hn::MulSub(hn::LoadU(d, from), part_step, part_base);
        const auto x1 = hn::MulSub(hn::LoadU(d, from + kBlockRows), part_step, part_base);
        const auto p =
            powers.Pair(hn::NearestInt(hn::Max(x0, lowest)), hn::NearestInt(hn::Max(x1, lowest)));
        total = Dots::BFloats(total, p, ones);
        hn::StoreU(p, di, to);
        from += 2 * kBlockRows;
        to += kBlockRows;
      }
    }
    hn::StoreU(new_max, d, state.max + c);
    hn::StoreU(total, d, state.sum + c);
    hn::StoreU(rescale, d, state.rescale + c);
  }
}

/// The queries of a block as words, a lane each, and what a product of integers counts in the
/// logits' base.
HWY_INLINE void PackQueries(const NarrowTask& narrow, NarrowScratch& scratch, std::int32_t* q,
                            float* steps) {
  const FloatTag d;
  const IntTag di;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const BlockTask& task = narrow.block;
  const std::int64_t rows = task.query_end - task.query_begin;
  const bool bytes = narrow.precision == Precision::kInt8;
  const auto integers = static_cast<float>(LargestInteger(narrow.precision, task.depth));
  float* columns = scratch.columns.Need(static_cast<std::size_t>(task.depth * kBlockRows));
  FloatRows(task.query, task.query_begin, rows, task.depth, scratch.key_rows, scratch.queries);
  std::fill_n(columns, task.depth * kBlockRows, 0.0F);
  // A step is above 0, so that the largest score is that of the largest sum and -inf stays -inf.
  TransposeRows(scratch.queries, rows, task.depth, task.scale < 0.0F ? -1.0F : 1.0F, kBlockRows,
                columns);
  const auto factor = hn::Set(d, std::abs(task.scale) * kLog2E);
  const std::int64_t words = narrow.key.stride / 4;
  for (std::int64_t lane = 0; lane < rows; lane += lanes) {
    float* x = columns + lane;
    const auto largest = RotateColumns(x, task.depth, kBlockRows);
    const auto per_step = PerStep(largest, integers);
    auto sum = hn::Zero(di);
    for (std::int64_t w = 0; w < words; ++w) {
      const auto word =
          bytes ? hn::Xor(WordOfColumns<4>(x, 4 * w, task.depth, kBlockRows, per_step, sum),
                          hn::Set(di, static_cast<std::int32_t>(0x80808080U)))
                : WordOfColumns<2>(x, 2 * w, task.depth, kBlockRows, per_step, sum);
      hn::StoreU(word, di, q + w * kBlockRows + lane);
    }
    hn::StoreU(hn::Max(hn::Mul(StepOf(largest, integers), factor), hn::Set(d, kLeastNarrow)), d,
               steps + lane);
  }
}

HWY_INLINE NarrowState InitNarrow(const BlockTask& task, float* memory) {
  NarrowState state;
  float** const parts[] = {&state.max,  &state.sum,   &state.seen, &state.rescale,
                           &state.most, &state.steps, &state.ones};
  for (float** part : parts) {
    *part = memory;
    std::fill_n(memory, kBlockRows, 0.0F);
    memory += kBlockRows;
  }
  std::fill_n(state.max, kBlockRows, -kInfinity);
  std::fill_n(state.steps, kBlockRows, 1.0F);
  std::fill_n(state.ones, kBlockRows, 1.0F);
  for (std::int64_t i = 0; i < kBlockRows; ++i) {
    const std::int64_t row = std::min(task.query_begin + i, task.query_end - 1);
    const std::int64_t position = task.query.Position(row);
    state.first_key[i] = static_cast<std::int32_t>(task.mask->First(position));
    state.last_key[i] = static_cast<std::int32_t>(task.mask->Last(position));
  }
  return state;
}

template <class Dots>
HWY_INLINE void NarrowScoreTile(const NarrowTask& narrow, const NarrowTile& tile,
                                const std::int32_t* q, float* s, float* most) {
  const std::int64_t words = narrow.key.stride / 4;
  std::fill_n(most, kBlockRows, -kInfinity);
  if (narrow.precision == Precision::kInt8) {
    ForMicroTiles(tile.count, tile.vectors,
                  NarrowScorePanels<Dots, true>{narrow.key, tile.first, q, words, s, most});
  } else {
    ForMicroTiles(tile.count, tile.vectors,
                  NarrowScorePanels<Dots, false>{narrow.key, tile.first, q, words, s, most});
  }
  if (tile.before != 0) std::fill_n(s, kBlockRows, -kInfinity);
  if (tile.count % 2 != 0) std::fill_n(s + tile.count * kBlockRows, kBlockRows, -kInfinity);
}

/// Masks a tile's scores, which an added bias turns into logits.
HWY_INLINE void MaskNarrowTile(const BlockTask& task, const NarrowTile& tile,
                               NarrowScratch& scratch, NarrowState& state, float* s) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t j = tile.before; j < tile.count; ++j) {
    scratch.key_positions[j] = static_cast<std::int32_t>(task.key.Position(tile.first + j));
    if (task.mask->bias.data == nullptr) continue;
    for (std::int64_t c = 0; c < tile.vectors * lanes; c += lanes) {
      float* at = s + j * kBlockRows + c;
      hn::StoreU(hn::Mul(hn::LoadU(d, at), hn::LoadU(d, state.steps + c)), d, at);
    }
  }
  MaskScores(task, scratch.key_positions + tile.before, tile.count - tile.before, tile.vectors,
             scratch, state.first_key, state.last_key, s + tile.before * kBlockRows, state.seen);
}

/// The largest scores of a tile once some were forbidden.
HWY_INLINE void FindLargest(const NarrowTile& tile, const float* s, float* most) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t c = 0; c < tile.vectors * lanes; c += lanes) {
    auto largest = hn::Set(d, -kInfinity);
    for (std::int64_t j = tile.before; j < tile.count; ++j) {
      largest = hn::Max(largest, hn::LoadU(d, s + j * kBlockRows + c));
    }
    hn::StoreU(largest, d, most + c);
  }
}

template <class Dots>
Partial AttendNarrow(const NarrowTask& narrow) {
  const BlockTask& task = narrow.block;
  NarrowScratch& scratch = OfThread<NarrowScratch>();
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(FloatTag()));
  const std::int64_t rows = task.query_end - task.query_begin;
  const std::int64_t vectors = (rows + lanes - 1) / lanes;
  const std::int64_t dv = task.value_depth;
  auto* q = reinterpret_cast<std::int32_t*>(
      scratch.q.Need(static_cast<std::size_t>(narrow.key.stride / 4 * kBlockRows)));
  float* s = scratch.scores.Need((kNarrowTileKeys + 1) * kBlockRows);
  float* o = scratch.out.Need(static_cast<std::size_t>(dv * kBlockRows));
  NarrowState state = InitNarrow(task, scratch.state.Need(7 * kBlockRows));
  std::fill_n(o, dv * kBlockRows, 0.0F);
  PackQueries(narrow, scratch, q, state.steps);

  for (std::size_t r = 0; r < task.ranges.size(); ++r) {
    const KeyRange range = task.ranges[r];
    const bool partial = !task.partial.empty() && task.partial[r];
    const bool biased = partial && task.mask->bias.data != nullptr;
    // Values lie in pairs: a tile begins with the even row of one.
    for (std::int64_t first = range.begin / 2 * 2; first < range.end; first += kNarrowTileKeys) {
      const NarrowTile tile{first, std::min<std::int64_t>(kNarrowTileKeys, range.end - first),
                            std::max<std::int64_t>(0, range.begin - first), vectors};
      NarrowScoreTile<Dots>(narrow, tile, q, s, state.most);
      if (partial) {
        MaskNarrowTile(task, tile, scratch, state, s);
      } else {
        std::fill_n(state.seen, kBlockRows, 1.0F);
      }
      if (partial || tile.before != 0) FindLargest(tile, s, state.most);
      const std::int64_t pairs = (tile.count + 1) / 2;
      if (narrow.precision == Precision::kInt8 && !biased) {
        NarrowWeights<Dots, false>(pairs, vectors, state.steps, state, s);
      } else {
        NarrowWeights<Dots, true>(pairs, vectors, biased ? state.ones : state.steps, state, s);
      }
      const auto* weights = reinterpret_cast<const std::int32_t*>(s);
      ForMicroTiles(dv, vectors,
                    NarrowValuePanels<Dots>{narrow.value + first / 2 * dv, dv, weights, pairs,
                                            state.rescale, o});
    }
  }

  float* result = scratch.result.Need(static_cast<std::size_t>(dv * kBlockRows));
  ColumnsToRows(o, rows, dv, result);
  const Partial partial{result, state.max, state.sum, dv, dv};
  for (std::int64_t i = 0; i < rows; ++i) ClosePartial(partial.Row(i), state.seen[i] != 0.0F);
  return partial;
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_NARROW_BLOCK_INL_H_
