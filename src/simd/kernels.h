// The SIMD pieces, as the rest of the library sees them. Compiled once for every instruction set;
// each call runs the best that the machine has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "simd/dropout.h"
#include "simd/mask.h"
#include "simd/partial.h"
#include "smyrf/plan.h"
#include "smyrf/tensor.h"

namespace smyrf::kernels {

/// Queries that one call attends for: they are the SIMD lanes.
inline constexpr std::int64_t kBlockRows = 64;

/// `depth` floats and room for whole vectors, of at most 16.
inline std::int64_t PaddedDepth(std::int64_t depth) { return (depth + 15) / 16 * 16; }

/// Rows of one head: row i is at position order[i], or i without an order.
struct Rows {
  const std::byte* data = nullptr;
  std::int64_t stride = 0;  ///< bytes
  DType dtype = DType::kFloat32;
  const std::int32_t* order = nullptr;

  std::int64_t Position(std::int64_t i) const { return order != nullptr ? order[i] : i; }
  const std::byte* Row(std::int64_t i) const { return data + Position(i) * stride; }
};

/// Contiguous float32 rows of `depth`.
inline Rows RowsOf(const float* rows, std::int64_t depth) {
  return {reinterpret_cast<const std::byte*>(rows), depth * std::int64_t{sizeof(float)},
          DType::kFloat32, nullptr};
}

/// Rows of one (batch, head) of a (B, H, N, D) view, in an order of positions; empty: as they lie.
inline Rows RowsOf(const TensorView& view, std::int64_t batch, std::int64_t head,
                   std::span<const std::int32_t> order) {
  const std::int64_t size = SizeOf(view.dtype);
  const auto* data = static_cast<const std::byte*>(view.data);  // may be null where there are none
  if (data != nullptr) data += size * (batch * view.strides[0] + head * view.strides[1]);
  return {data, size * view.strides[2], view.dtype, order.empty() ? nullptr : order.data()};
}

/// Exact attention of at most kBlockRows queries over ranges of keys.
struct BlockTask {
  Rows query, key, value;
  std::int64_t depth = 0;        ///< D
  std::int64_t value_depth = 0;  ///< Dv
  std::int64_t query_begin = 0;  ///< in query order
  std::int64_t query_end = 0;
  std::span<const KeyRange> ranges;  ///< in key order
  /// Of each range: whether the mask is to be asked for each of its pairs. Empty: of none.
  std::span<const bool> partial;
  float scale = 1.0F;
  const Mask* mask = nullptr;  ///< asked in partial ranges
  std::int64_t batch = 0;      ///< for mask and dropout
  std::int64_t head = 0;
  const Dropout* dropout = nullptr;  ///< null: none
};

/// In memory of the calling thread, valid until its next call. Cost: rows * keys * (D + Dv)
/// multiply-adds; one pass over the keys.
Partial AttendBlock(const BlockTask& task);

/// target (count, depth) = rows [begin, begin + count) as float32.
void GatherRows(const Rows& rows, std::int64_t begin, std::int64_t count, std::int64_t depth,
                float* target);

/// Rounds to the nearest even value of the narrow types; NaN stays NaN.
void StoreRow(const float* source, std::int64_t count, DType dtype, std::byte* target);

/// Largest absolute value over rows [begin, end); NaN if one is NaN.
float MaxAbs(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth);

/// For row i in [begin, end) (at most kBlockRows), times `factor`: its squared norm to norms[i] and
/// its product with direction r to products[r * product_stride + i]. directions: (count, depth).
struct ProjectTask {
  Rows rows;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t depth = 0;
  float factor = 1.0F;
  const float* directions = nullptr;
  std::int64_t direction_count = 0;
  float* norms = nullptr;
  float* products = nullptr;
  std::int64_t product_stride = 0;
};
void ProjectRows(const ProjectTask& task);

/// e^x for x <= 0, elementwise; NaN stays NaN, -inf gives 0. The executors' own, open to tests.
void Exp(const float* x, float* result, std::int64_t count);

/// Instruction sets of this build that the machine has, best first, and the choice among them.
std::vector<std::string> InstructionSets();
bool ForceInstructionSet(const std::string& name);  ///< empty: the best; false if unknown
const char* InstructionSet();

}  // namespace smyrf::kernels
