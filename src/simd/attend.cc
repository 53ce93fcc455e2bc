// AttendBlock: streaming softmax over tiles of keys (Milakov & Gimelshein 2018; FlashAttention, Dao
// et al. 2022), for one block of queries.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "base/workspace.h"
#include "simd/block.h"
#include "simd/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "simd/attend.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "simd/block-inl.h"
#include "simd/convert-inl.h"
#include "simd/dropout-inl.h"
#include "simd/exp-inl.h"
#include "simd/few-inl.h"
#include "simd/softmax-inl.h"
#include "simd/tile-inl.h"

#ifndef SMYRF_ATTEND_ONCE_
#define SMYRF_ATTEND_ONCE_
namespace smyrf::kernels {
namespace {

/// Blocks of at most so many queries, and at most a quarter of a vector, take the kernel whose
/// lanes run along D (measured at D 64, Nk 2048: break-even at 4 to 5 of 16 lanes, 2 to 3 of 8).
constexpr std::int64_t kFewRows = 4;

struct Scratch : TileScratch {
  Buffer q, scores, out, result, state;
  std::int64_t bytes() const {
    return TileScratch::bytes() + BytesOf(q, scores, out, result, state);
  }
};

}  // namespace
}  // namespace smyrf::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// The running softmax of a block, a lane a query: in base 2, so that exp is exp2.
struct State {
  float* max;      ///< largest logit so far, -inf at first
  float* sum;      ///< sum of 2^(logit - max)
  float* rescale;  ///< what the last tile multiplies older sums by
  float* seen;     ///< not 0 where a key was allowed
};

/// Weights of a tile times their pairs' factors. The sums of weights are those before.
HWY_INLINE void DropWeights(const Dropout& dropout, const DropoutLanes& words,
                            const std::int32_t* positions, std::int64_t count, std::int64_t vectors,
                            float* s) {
  const FloatTag d;
  const WordTag du;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t j = 0; j < count; ++j) {
    const auto key = hn::Set(du, static_cast<std::uint32_t>(positions[j]) * Dropout::kStep);
    for (std::int64_t c = 0; c < vectors * lanes; c += lanes) {
      float* at = s + j * kBlockRows + c;
      const auto factor =
          DropoutFactors(dropout, hn::LoadU(du, words.low + c), hn::LoadU(du, words.high + c), key);
      hn::StoreU(hn::Mul(hn::LoadU(d, at), factor), d, at);
    }
  }
}

/// Many queries: a lane each.
Partial AttendLanes(const BlockTask& task, Scratch& scratch) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(FloatTag()));
  const std::int64_t rows = task.query_end - task.query_begin;
  const std::int64_t vectors = (rows + lanes - 1) / lanes;
  const std::int64_t dv = task.value_depth;

  float* q = scratch.q.Need(static_cast<std::size_t>(task.depth * kBlockRows));
  float* s = scratch.scores.Need(static_cast<std::size_t>(kTileKeys * kBlockRows));
  float* o = scratch.out.Need(static_cast<std::size_t>(dv * kBlockRows));
  float* memory = scratch.state.Need(4 * kBlockRows);
  const State state{memory, memory + kBlockRows, memory + 2 * kBlockRows, memory + 3 * kBlockRows};
  std::int32_t first[kBlockRows];
  std::int32_t last[kBlockRows];
  for (std::int64_t i = 0; i < kBlockRows; ++i) {
    state.max[i] = -kInfinity;
    state.sum[i] = 0.0F;
    state.seen[i] = 0.0F;
    const std::int64_t position = task.query.Position(task.query_begin + std::min(i, rows - 1));
    first[i] = static_cast<std::int32_t>(task.mask->First(position));
    last[i] = static_cast<std::int32_t>(task.mask->Last(position));
  }
  std::fill_n(o, dv * kBlockRows, 0.0F);
  FloatRows(task.query, task.query_begin, rows, task.depth, scratch.key_rows, scratch.queries);
  std::fill_n(q, task.depth * kBlockRows, 0.0F);
  TransposeRows(scratch.queries, rows, task.depth, task.scale * kLog2E, kBlockRows, q);

  const bool drops = task.dropout != nullptr && task.dropout->active();
  DropoutLanes words;
  if (drops) LoadDropout(task, words);

  ForTiles(task, drops, scratch, [&](std::int64_t count, bool partial) HWY_ATTR {
    ScoreTile<kBlockRows>(scratch.keys, count, q, task.depth, vectors, s);
    if (partial) {
      MaskScores(task, scratch.key_positions, count, vectors, scratch, first, last, s, state.seen);
    } else {
      std::fill_n(state.seen, kBlockRows, 1.0F);
    }
    SoftmaxTile<kBlockRows>(count, vectors, state.max, state.sum, state.rescale, s);
    if (drops) DropWeights(*task.dropout, words, scratch.key_positions, count, vectors, s);
    ValueTile<kBlockRows>(scratch.values, count, s, dv, vectors, state.rescale, o);
  });

  float* by_row = scratch.result.Need(static_cast<std::size_t>(dv * kBlockRows));
  ColumnsToRows(o, rows, dv, by_row);
  const Partial result{by_row, state.max, state.sum, dv, dv};
  for (std::int64_t i = 0; i < rows; ++i) ClosePartial(result.Row(i), state.seen[i] != 0.0F);
  return result;
}

/// Few queries: one after the other over each tile of keys.
Partial AttendFew(const BlockTask& task, Scratch& scratch) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(FloatTag()));
  const std::int64_t rows = task.query_end - task.query_begin;
  const std::int64_t dv = task.value_depth;
  float* q = scratch.q.Need(static_cast<std::size_t>(kFewRows * task.depth));
  float* s = scratch.scores.Need(static_cast<std::size_t>(kTileKeys + lanes));
  float* max = scratch.state.Need(2 * kFewRows);
  const Partial result{scratch.result.Need(static_cast<std::size_t>(kFewRows * dv)), max,
                       max + kFewRows, dv, dv};
  bool seen[kFewRows];
  FloatRows(task.query, task.query_begin, rows, task.depth, scratch.key_rows, scratch.queries);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t c = 0; c < task.depth; ++c) {
      q[i * task.depth + c] = task.scale * kLog2E * scratch.queries[i][c];
    }
    InitPartial(result.Row(i));
    seen[i] = false;
  }

  const bool drops = task.dropout != nullptr && task.dropout->active();
  ForTiles(task, drops, scratch, [&](std::int64_t count, bool partial) HWY_ATTR {
    for (std::int64_t i = 0; i < rows; ++i) {
      FewScores(q + i * task.depth, scratch.keys, count, task.depth, s);
      if (partial) {
        const std::int64_t position = task.query.Position(task.query_begin + i);
        for (std::int64_t j = 0; j < count; ++j) {
          const float bias =
              task.mask->Bias(task.batch, task.head, position, scratch.key_positions[j]);
          seen[i] = seen[i] || bias != -kInfinity;
          s[j] = bias == -kInfinity ? bias : s[j] + BiasInBase2(bias);
        }
      } else {
        seen[i] = true;
      }
      const float rescale = FewSoftmax(count, result.max[i], result.sum[i], s);
      if (drops) {
        const DropoutRow row =
            task.dropout->Row(task.batch, task.head, task.query.Position(task.query_begin + i));
        for (std::int64_t j = 0; j < count; ++j) {
          s[j] *= task.dropout->Of(row, scratch.key_positions[j]);
        }
      }
      FewValues(s, scratch.values, count, dv, rescale, result.out + i * dv);
    }
  });

  for (std::int64_t i = 0; i < rows; ++i) ClosePartial(result.Row(i), seen[i]);
  return result;
}

Partial AttendBlockImpl(const BlockTask& task) {
  Scratch& scratch = OfThread<Scratch>();
  const std::int64_t rows = task.query_end - task.query_begin;
  const auto quarter =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(hn::Lanes(FloatTag())) / 4);
  return rows <= std::min(kFewRows, quarter) ? AttendFew(task, scratch)
                                             : AttendLanes(task, scratch);
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf::kernels {

HWY_EXPORT(AttendBlockImpl);

Partial AttendBlock(const BlockTask& task) { return HWY_DYNAMIC_DISPATCH(AttendBlockImpl)(task); }

}  // namespace smyrf::kernels
#endif
