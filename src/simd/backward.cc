// BackwardBlock: weights and their gradients again from lse, a tile of keys at a time
// (FlashAttention, Dao et al. 2022, algorithm 4), for one block of queries.
#include "simd/backward.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/workspace.h"
#include "simd/block.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "simd/backward.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "simd/backward-inl.h"
#include "simd/block-inl.h"
#include "simd/convert-inl.h"
#include "simd/dropout-inl.h"
#include "simd/exp-inl.h"
#include "simd/tile-inl.h"

#ifndef SMYRF_BACKWARD_ONCE_
#define SMYRF_BACKWARD_ONCE_
namespace smyrf::kernels {
namespace {

struct BackwardScratch : TileScratch {
  Buffer out_rows, zeros, q, g, q_rows, g_rows, weights, gradients, dq, result;
  const float* grads[kBlockRows];
  const float* outs[kBlockRows];
  float* key_targets[kTileKeys];
  float* value_targets[kTileKeys];
  std::int64_t bytes() const {
    return TileScratch::bytes() +
           BytesOf(out_rows, zeros, q, g, q_rows, g_rows, weights, gradients, dq, result);
  }
};

}  // namespace
}  // namespace smyrf::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// What lanes need beside the rows of q and grad_out.
struct LaneState {
  HWY_ALIGN float lse[kBlockRows];    ///< base 2; +inf for lanes without a query that sees a key
  HWY_ALIGN float delta[kBlockRows];  ///< grad_out . out - grad_lse
  std::int32_t first[kBlockRows];
  std::int32_t last[kBlockRows];
};

/// Rows of q, grad_out and out; of a query that sees no key, zeros.
void LoadBlock(const BackwardTask& task, BackwardScratch& scratch, LaneState& state) {
  const BlockTask& block = task.block;
  const std::int64_t begin = block.query_begin;
  const std::int64_t rows = block.query_end - begin;
  const std::int64_t dv = block.value_depth;
  float* zeros = scratch.zeros.Need(static_cast<std::size_t>(std::max(block.depth, dv)));
  std::fill_n(zeros, std::max(block.depth, dv), 0.0F);
  FloatRows(block.query, begin, rows, block.depth, scratch.key_rows, scratch.queries);
  FloatRows(task.grad_out, begin, rows, dv, scratch.value_rows, scratch.grads);
  FloatRows(task.out, begin, rows, dv, scratch.out_rows, scratch.outs);
  for (std::int64_t i = 0; i < kBlockRows; ++i) {
    const std::int64_t position = block.query.Position(begin + std::min(i, rows - 1));
    state.first[i] = static_cast<std::int32_t>(block.mask->First(position));
    state.last[i] = static_cast<std::int32_t>(block.mask->Last(position));
    const float lse = task.lse[position];
    if (i >= rows || lse == -kInfinity) {
      state.lse[i] = kInfinity;
      state.delta[i] = 0.0F;
      if (i < rows) scratch.queries[i] = scratch.grads[i] = zeros;
      continue;
    }
    state.lse[i] = BiasInBase2(lse);  // finite: a row masked by the lowest float has such a lse
    state.delta[i] = Dot(scratch.grads[i], scratch.outs[i], dv);
    if (task.grad_lse != nullptr) state.delta[i] -= task.grad_lse[position];
  }
}

const float* BackwardBlockImpl(const BackwardTask& task) {
  BackwardScratch& scratch = OfThread<BackwardScratch>();
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const BlockTask& block = task.block;
  const std::int64_t rows = block.query_end - block.query_begin;
  const std::int64_t vectors = (rows + lanes - 1) / lanes;
  const std::int64_t depth = block.depth;
  const std::int64_t dv = block.value_depth;
  const std::int64_t key_stride = PaddedDepth(depth);
  const std::int64_t value_stride = PaddedDepth(dv);
  LaneState state;
  LoadBlock(task, scratch, state);
  float* q = scratch.q.Need(static_cast<std::size_t>(depth * kBlockRows));
  float* g = scratch.g.Need(static_cast<std::size_t>(dv * kBlockRows));
  std::fill_n(q, depth * kBlockRows, 0.0F);
  std::fill_n(g, dv * kBlockRows, 0.0F);
  TransposeRows(scratch.queries, rows, depth, block.scale * kLog2E, kBlockRows, q);
  TransposeRows(scratch.grads, rows, dv, 1.0F, kBlockRows, g);
  float* q_rows = scratch.q_rows.Need(static_cast<std::size_t>(kBlockRows * key_stride));
  float* g_rows = scratch.g_rows.Need(static_cast<std::size_t>(kBlockRows * value_stride));
  PadRows(scratch.queries, rows, depth, block.scale, q_rows);
  PadRows(scratch.grads, rows, dv, 1.0F, g_rows);
  float* p = scratch.weights.Need(static_cast<std::size_t>(kTileKeys * kBlockRows));
  float* ds = scratch.gradients.Need(static_cast<std::size_t>(kTileKeys * kBlockRows));
  float* dq = scratch.dq.Need(static_cast<std::size_t>(depth * kBlockRows));
  std::fill_n(dq, depth * kBlockRows, 0.0F);
  HWY_ALIGN float ones[kBlockRows];
  HWY_ALIGN float seen[kBlockRows];  // not asked for: lse tells
  std::fill_n(ones, kBlockRows, 1.0F);
  std::fill_n(seen, kBlockRows, 0.0F);
  const bool drops = block.dropout != nullptr && block.dropout->active();
  DropoutLanes words;
  if (drops) LoadDropout(block, words);

  ForTiles(block, true, scratch, [&](std::int64_t count, bool partial) HWY_ATTR {
    ScoreTile<kBlockRows>(scratch.keys, count, q, depth, vectors, p);
    if (partial) {
      MaskScores(block, scratch.key_positions, count, vectors, scratch, state.first, state.last, p,
                 seen);
    }
    ScoreTile<kBlockRows>(scratch.values, count, g, dv, vectors, ds);
    if (drops) {
      DropGradientTile<kBlockRows>(count, vectors, state.lse, state.delta, *block.dropout,
                                   words.low, words.high, scratch.key_positions, p, ds);
    } else {
      GradientTile<kBlockRows>(count, vectors, state.lse, state.delta, p, ds);
    }
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t position = scratch.key_positions[j];
      scratch.key_targets[j] = task.grad_key + position * key_stride;
      scratch.value_targets[j] = task.grad_value + position * value_stride;
    }
    ValueTile<kBlockRows>(scratch.keys, count, ds, depth, vectors, ones, dq);
    AddTile<kBlockRows>(ds, count, rows, q_rows, key_stride, (depth + lanes - 1) / lanes,
                        scratch.key_targets);
    AddTile<kBlockRows>(p, count, rows, g_rows, value_stride, (dv + lanes - 1) / lanes,
                        scratch.value_targets);
  });

  float* result = scratch.result.Need(static_cast<std::size_t>(rows * depth));
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t c = 0; c < depth; ++c) {
      result[i * depth + c] = block.scale * dq[c * kBlockRows + i];
    }
  }
  return result;
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf::kernels {

HWY_EXPORT(BackwardBlockImpl);

const float* BackwardBlock(const BackwardTask& task) {
  return HWY_DYNAMIC_DISPATCH(BackwardBlockImpl)(task);
}

}  // namespace smyrf::kernels
#endif
