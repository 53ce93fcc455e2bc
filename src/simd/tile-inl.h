// The matrix products of attention on one tile, with queries as SIMD lanes: scores
// S^T (keys, queries) = K Q^T and outputs O^T (Dv, queries) += V^T P^T; and with columns as lanes
// outputs O (queries, Dv) += P V and gradients dK (keys, D) += dS^T Q. Keys and values are read in
// place through row pointers; softmax over S^T then needs no operation across lanes. kWidth is the
// number of queries that scores and outputs have room for.
#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "simd/convert-inl.h"
#include "simd/kernels.h"

#if defined(SMYRF_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SMYRF_TILE_INL_H_
#undef SMYRF_TILE_INL_H_
#else
#define SMYRF_TILE_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

static_assert(hn::MaxLanes(FloatTag()) <= 16, "PaddedDepth has room for whole vectors");

// Accumulators of one micro-tile: PanelRows rows by up to kVectors vectors, as many as stay in
// registers. The loops over them must be unrolled whole, or GCC keeps them in memory.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64
inline constexpr int kVectors = 4;  // of 32 registers: 24 + 4 + 1
#else
inline constexpr int kVectors = 2;  // of 16 registers: 12 + 2 + 1
#endif
/// Where every row has an address of its own, for which registers run out.
constexpr int RowsApart(int vectors) { return 2 * vectors <= kVectors ? 8 : 6; }
/// Where rows lie side by side.
constexpr int RowsTogether(int vectors) {
  return 4 * vectors <= kVectors ? 16 : RowsApart(vectors);
}
#define SMYRF_UNROLL _Pragma("GCC unroll 16")
// A tenth more products a second; more steps add nothing.
#define SMYRF_UNROLL_STEPS _Pragma("GCC unroll 4")
// Keeps GCC from addressing through an index: x86 splits a multiply-add from such an operand in
// two. In a tile of one vector every multiply-add has one, and takes up to half as long again;
// wider tiles lose nothing by it.
#define SMYRF_NO_INDEX(pointer) asm("" : "+r"(pointer))

template <int kCols>
HWY_INLINE void LoadVectors(const float* from, FloatVector (&x)[kCols]) {
  const FloatTag d;
  SMYRF_UNROLL
  for (int c = 0; c < kCols; ++c) {
    x[c] = hn::LoadU(d, from + static_cast<std::size_t>(c) * hn::Lanes(d));
  }
}

template <int kCols>
HWY_INLINE void StoreVectors(const FloatVector (&x)[kCols], float* to) {
  const FloatTag d;
  SMYRF_UNROLL
  for (int c = 0; c < kCols; ++c) {
    hn::StoreU(x[c], d, to + static_cast<std::size_t>(c) * hn::Lanes(d));
  }
}

/// sum += factor * x.
template <int kCols>
HWY_INLINE void AddProducts(float factor, const FloatVector (&x)[kCols],
                            FloatVector (&sum)[kCols]) {
  const auto a = hn::Set(FloatTag(), factor);
  SMYRF_UNROLL
  for (int c = 0; c < kCols; ++c) sum[c] = hn::MulAdd(a, x[c], sum[c]);
}

/// sum[r] += key[r][i] * q[i].
template <int kWidth, int kRows, int kCols>
HWY_INLINE void ScoreStep(const float* const (&key)[kRows], const float* q, std::int64_t i,
                          FloatVector (&sum)[kRows][kCols]) {
  FloatVector x[kCols];
  LoadVectors(q + i * kWidth, x);
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) AddProducts(key[r][i], x, sum[r]);
}

/// s[r][lanes] = sum over c of rows[r][c] * q[c][lanes]: kRows keys by kCols vectors of queries.
template <int kWidth, int kRows, int kCols>
HWY_INLINE void ScoreMicro(const float* const* rows, const float* q, std::int64_t depth, float* s) {
  FloatVector sum[kRows][kCols];
  const float* key[kRows];
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) {
    key[r] = rows[r];
    SMYRF_UNROLL
    for (int c = 0; c < kCols; ++c) sum[r][c] = hn::Zero(FloatTag());
  }
  std::int64_t left = depth;
  if constexpr (kCols == 1) {
    for (; left >= 4; left -= 4) {
      SMYRF_UNROLL
      for (int i = 0; i < 4; ++i) ScoreStep<kWidth, kRows, kCols>(key, q, i, sum);
      SMYRF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        key[r] += 4;
        SMYRF_NO_INDEX(key[r]);
      }
      q += 4 * kWidth;
    }
  }
  SMYRF_UNROLL_STEPS
  for (std::int64_t i = 0; i < left; ++i) ScoreStep<kWidth, kRows, kCols>(key, q, i, sum);
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) StoreVectors(sum[r], s + r * kWidth);
}

/// o[r][lanes] = o[r][lanes] * rescale[lanes] + sum over keys j of rows[j][first + r] *
/// p[j][lanes]: kRows value columns by kCols vectors of queries.
template <int kWidth, int kRows, int kCols>
HWY_INLINE void ValueMicro(const float* const* rows, std::int64_t first, const float* p,
                           std::int64_t count, const float* rescale, float* o) {
  FloatVector sum[kRows][kCols];
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FloatVector factor[kCols];
    LoadVectors(rescale, factor);
    LoadVectors(o + r * kWidth, sum[r]);
    SMYRF_UNROLL
    for (int c = 0; c < kCols; ++c) sum[r][c] = hn::Mul(sum[r][c], factor[c]);
  }
  SMYRF_UNROLL_STEPS
  for (std::int64_t j = 0; j < count; ++j) {
    const float* value = rows[j] + first;
    SMYRF_NO_INDEX(value);
    FloatVector x[kCols];
    LoadVectors(p + j * kWidth, x);
    SMYRF_UNROLL
    for (int r = 0; r < kRows; ++r) AddProducts(value[r], x, sum[r]);
  }
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) StoreVectors(sum[r], o + r * kWidth);
}

/// o[r][lanes] = o[r][lanes] * rescale[r] + sum over keys j of p[j][r] * rows[j][first + lanes]:
/// kRows queries by kCols vectors of value columns.
template <int kWidth, int kRows, int kCols>
HWY_INLINE void OutputMicro(const float* const* rows, std::int64_t first, const float* p,
                            std::int64_t count, const float* rescale, float* o,
                            std::int64_t stride) {
  FloatVector sum[kRows][kCols];
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const auto factor = hn::Set(FloatTag(), rescale[r]);
    LoadVectors(o + r * stride, sum[r]);
    SMYRF_UNROLL
    for (int c = 0; c < kCols; ++c) sum[r][c] = hn::Mul(sum[r][c], factor);
  }
  for (std::int64_t j = 0; j < count; ++j) {
    const float* value = rows[j] + first;
    SMYRF_NO_INDEX(value);
    FloatVector x[kCols];
    LoadVectors(value, x);
    SMYRF_UNROLL
    for (int r = 0; r < kRows; ++r) AddProducts(p[r], x, sum[r]);
    p += kWidth;
    SMYRF_NO_INDEX(p);
  }
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) StoreVectors(sum[r], o + r * stride);
}

/// targets[r][first + lanes] += sum over i of s[r][i] * x[i][lanes]: kRows rows of s, kWidth apart,
/// by kCols vectors of columns.
template <int kWidth, int kRows, int kCols>
HWY_INLINE void AddMicro(const float* s, std::int64_t depth, const float* x, std::int64_t x_stride,
                         float* const* targets, std::int64_t first) {
  FloatVector sum[kRows][kCols];
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) LoadVectors(targets[r] + first, sum[r]);
  for (std::int64_t i = 0; i < depth; ++i) {
    FloatVector column[kCols];
    LoadVectors(x + i * x_stride, column);
    SMYRF_UNROLL
    for (int r = 0; r < kRows; ++r) AddProducts(s[r * kWidth + i], column, sum[r]);
  }
  SMYRF_UNROLL
  for (int r = 0; r < kRows; ++r) StoreVectors(sum[r], targets[r] + first);
}

template <int kRows, int kCols, class Micro>
HWY_NOINLINE void RunApart(const Micro& micro, std::int64_t row, std::int64_t col) {
  micro.template Run<kRows, kCols>(row, col);
}

/// Narrow tiles are computed among much other code, which takes the registers that addresses should
/// be in, so GCC gets them as functions of their own. Wide ones, the dense kernel's, are better off
/// inlined.
template <int kRows, int kCols, class Micro>
HWY_INLINE void RunMicro(const Micro& micro, std::int64_t row, std::int64_t col) {
  if constexpr (Micro::kNarrow) {
    RunApart<kRows, kCols>(micro, row, col);
  } else {
    micro.template Run<kRows, kCols>(row, col);
  }
}

/// What is left of a panel: `rows` of them, fewer than kRows.
template <int kRows, int kCols, class Micro>
HWY_INLINE void RunRest(std::int64_t rows, std::int64_t row, std::int64_t col, const Micro& micro) {
  if constexpr (kRows > 1) {
    if (rows == kRows - 1) return RunMicro<kRows - 1, kCols>(micro, row, col);
    RunRest<kRows - 1, kCols>(rows, row, col, micro);
  }
}

/// Calls micro.Run<rows, cols>(row, col) over a grid of `rows` by `vectors`, in micro-tiles
/// of its panel's rows by kVectors and what is left of them.
template <int kCols, class Micro>
HWY_INLINE void ForPanels(std::int64_t rows, std::int64_t col, const Micro& micro) {
  constexpr int kRows = Micro::PanelRows(kCols);
  std::int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) RunMicro<kRows, kCols>(micro, r, col);
  if (r < rows) RunRest<kRows, kCols>(rows - r, r, col, micro);
}

template <class Micro>
HWY_INLINE void ForMicroTiles(std::int64_t rows, std::int64_t vectors, const Micro& micro) {
  std::int64_t c = 0;
  for (; c + kVectors <= vectors; c += kVectors) ForPanels<kVectors>(rows, c, micro);
  if constexpr (kVectors > 2) {
    if (vectors - c == 3) ForPanels<3>(rows, c, micro);
    if (vectors - c == 2) ForPanels<2>(rows, c, micro);
  }
  if (vectors - c == 1) ForPanels<1>(rows, c, micro);
}

template <int kWidth>
struct ScorePanels {
  static constexpr int PanelRows(int vectors) { return RowsApart(vectors); }
  static constexpr bool kNarrow = kBlockRows > kWidth;
  const float* const* rows;
  const float* q;
  std::int64_t depth;
  float* s;
  template <int kRows, int kCols>
  HWY_INLINE void Run(std::int64_t row, std::int64_t vector) const {
    const std::int64_t at = vector * static_cast<std::int64_t>(hn::Lanes(FloatTag()));
    ScoreMicro<kWidth, kRows, kCols>(rows + row, q + at, depth, s + row * kWidth + at);
  }
};

template <int kWidth>
struct ValuePanels {
  static constexpr int PanelRows(int vectors) { return RowsTogether(vectors); }
  static constexpr bool kNarrow = kBlockRows > kWidth;
  const float* const* rows;
  const float* p;
  std::int64_t count;
  const float* rescale;
  float* o;
  template <int kRows, int kCols>
  HWY_INLINE void Run(std::int64_t row, std::int64_t vector) const {
    const std::int64_t at = vector * static_cast<std::int64_t>(hn::Lanes(FloatTag()));
    ValueMicro<kWidth, kRows, kCols>(rows, row, p + at, count, rescale + at, o + row * kWidth + at);
  }
};

template <int kWidth>
struct OutputPanels {
  static constexpr bool kNarrow = kBlockRows > kWidth;
  static constexpr int PanelRows(int vectors) { return RowsTogether(vectors); }
  const float* const* rows;
  const float* p;
  std::int64_t count;
  const float* rescale;
  float* o;
  std::int64_t stride;
  template <int kRows, int kCols>
  HWY_INLINE void Run(std::int64_t row, std::int64_t vector) const {
    const std::int64_t at = vector * static_cast<std::int64_t>(hn::Lanes(FloatTag()));
    OutputMicro<kWidth, kRows, kCols>(rows, at, p + row, count, rescale + row,
                                      o + row * stride + at, stride);
  }
};

template <int kWidth>
struct AddPanels {
  static constexpr int PanelRows(int vectors) { return RowsApart(vectors); }
  static constexpr bool kNarrow = kBlockRows > kWidth;
  const float* s;
  std::int64_t depth;
  const float* x;
  std::int64_t x_stride;
  float* const* targets;
  template <int kRows, int kCols>
  HWY_INLINE void Run(std::int64_t row, std::int64_t vector) const {
    const std::int64_t at = vector * static_cast<std::int64_t>(hn::Lanes(FloatTag()));
    AddMicro<kWidth, kRows, kCols>(s + row * kWidth, depth, x + at, x_stride, targets + row, at);
  }
};

/// s (count, kWidth) = rows (count, depth) times q (depth, kWidth), `vectors` vectors wide.
template <int kWidth>
HWY_INLINE void ScoreTile(const float* const* rows, std::int64_t count, const float* q,
                          std::int64_t depth, std::int64_t vectors, float* s) {
  ForMicroTiles(count, vectors, ScorePanels<kWidth>{rows, q, depth, s});
}

/// o (depth, kWidth) = o * rescale + rows^T (depth, count) times p (count, kWidth).
template <int kWidth>
HWY_INLINE void ValueTile(const float* const* rows, std::int64_t count, const float* p,
                          std::int64_t depth, std::int64_t vectors, const float* rescale,
                          float* o) {
  ForMicroTiles(depth, vectors, ValuePanels<kWidth>{rows, p, count, rescale, o});
}

/// As ValueTile with o (queries, stride) the other way round, for rows that may be read to whole
/// vectors: where one vector holds the queries, `vectors` of columns make better tiles.
template <int kWidth>
HWY_INLINE void OutputTile(const float* const* rows, std::int64_t count, const float* p,
                           std::int64_t queries, std::int64_t vectors, const float* rescale,
                           float* o, std::int64_t stride) {
  ForMicroTiles(queries, vectors, OutputPanels<kWidth>{rows, p, count, rescale, o, stride});
}

/// Row j of targets += row j of s (count, kWidth) times x (depth, x_stride): what `depth` queries
/// add to the gradients of keys and values. Targets and rows of x have room for whole vectors.
template <int kWidth>
HWY_INLINE void AddTile(const float* s, std::int64_t count, std::int64_t depth, const float* x,
                        std::int64_t x_stride, std::int64_t vectors, float* const* targets) {
  ForMicroTiles(count, vectors, AddPanels<kWidth>{s, depth, x, x_stride, targets});
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // SMYRF_TILE_INL_H_
