// Row-wise pieces: gathering, storing, projecting, and the table of instruction sets.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "base/workspace.h"
#include "simd/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "simd/rows.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "simd/convert-inl.h"
#include "simd/exp-inl.h"
#include "simd/tile-inl.h"

#ifndef SMYRF_ROWS_ONCE_
#define SMYRF_ROWS_ONCE_
namespace smyrf::kernels {
namespace {

struct RowScratch {
  Buffer converted, transposed, products;
  std::int64_t bytes() const { return BytesOf(converted, transposed, products); }
};

}  // namespace
}  // namespace smyrf::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void StoreRowImpl(const float* source, std::int64_t count, DType dtype, std::byte* target) {
  if (dtype == DType::kFloat32) {
    std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof(float));
  } else if (dtype == DType::kFloat16) {
    StoreNarrow<DType::kFloat16>(source, count, reinterpret_cast<std::uint16_t*>(target));
  } else {
    StoreNarrow<DType::kBFloat16>(source, count, reinterpret_cast<std::uint16_t*>(target));
  }
}

void GatherRowsImpl(const Rows& rows, std::int64_t begin, std::int64_t count, std::int64_t depth,
                    float* target) {
  for (std::int64_t i = 0; i < count; ++i) {
    LoadRow(rows.Row(begin + i), rows.dtype, depth, target + i * depth);
  }
}

float MaxAbsImpl(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto largest = hn::Zero(d);
  auto poison = hn::Zero(d);  // x * 0 is NaN where x is NaN or infinite
  float largest_left = 0.0F;  // of columns that fill no vector
  float poison_left = 0.0F;
  const float* pointers[kBlockRows];
  for (std::int64_t first = begin; first < end; first += kBlockRows) {
    const std::int64_t count = std::min(kBlockRows, end - first);
    FloatRows(rows, first, count, depth, OfThread<RowScratch>().converted, pointers);
    for (std::int64_t i = 0; i < count; ++i) {
      const float* row = pointers[i];
      std::int64_t c = 0;
      for (; c + lanes <= depth; c += lanes) {
        const auto x = hn::LoadU(d, row + c);
        largest = hn::Max(largest, hn::Abs(x));
        poison = hn::MulAdd(x, hn::Zero(d), poison);
      }
      for (; c < depth; ++c) {
        largest_left = std::max(largest_left, std::abs(row[c]));
        poison_left += row[c] * 0.0F;
      }
    }
  }
  const float sum = hn::GetLane(hn::SumOfLanes(d, poison)) + poison_left;
  return sum == 0.0F ? std::max(hn::GetLane(hn::MaxOfLanes(d, largest)), largest_left)
                     : std::numeric_limits<float>::quiet_NaN();
}

void ProjectRowsImpl(const ProjectTask& task) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  constexpr std::int64_t kDirections = 64;  // a tile
  RowScratch& scratch = OfThread<RowScratch>();
  const std::int64_t rows = task.end - task.begin;
  const std::int64_t vectors = (rows + lanes - 1) / lanes;
  const float* pointers[kBlockRows];
  FloatRows(task.rows, task.begin, rows, task.depth, scratch.converted, pointers);
  float* x = scratch.transposed.Need(static_cast<std::size_t>(kBlockRows * task.depth));
  std::fill_n(x, kBlockRows * task.depth, 0.0F);
  TransposeRows(pointers, rows, task.depth, task.factor, kBlockRows, x);
  for (std::int64_t i = 0; i < rows; ++i) {
    float norm = 0.0F;
    for (std::int64_t c = 0; c < task.depth; ++c)
      norm += x[c * kBlockRows + i] * x[c * kBlockRows + i];
    task.norms[task.begin + i] = norm;
  }
  float* products = scratch.products.Need(kDirections * kBlockRows);
  for (std::int64_t r = 0; r < task.direction_count; r += kDirections) {
    const std::int64_t count = std::min(kDirections, task.direction_count - r);
    const float* directions[kDirections];
    for (std::int64_t j = 0; j < count; ++j) directions[j] = task.directions + (r + j) * task.depth;
    ScoreTile<kBlockRows>(directions, count, x, task.depth, vectors, products);
    for (std::int64_t j = 0; j < count; ++j) {
      std::copy_n(products + j * kBlockRows, rows,
                  task.products + (r + j) * task.product_stride + task.begin);
    }
  }
}

void ExpImpl(const float* x, float* result, std::int64_t count) {
  const FloatTag d;
  const hn::CappedTag<float, 1> d1;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  constexpr float kLog2E = 1.44269504088896340736F;
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(Exp2(d, hn::Mul(hn::LoadU(d, x + i), hn::Set(d, kLog2E))), d, result + i);
  }
  for (; i < count; ++i) result[i] = hn::GetLane(Exp2(d1, hn::Set(d1, x[i] * kLog2E)));
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf::kernels {

HWY_EXPORT(StoreRowImpl);
HWY_EXPORT(GatherRowsImpl);
HWY_EXPORT(MaxAbsImpl);
HWY_EXPORT(ProjectRowsImpl);
HWY_EXPORT(ExpImpl);

void StoreRow(const float* source, std::int64_t count, DType dtype, std::byte* target) {
  HWY_DYNAMIC_DISPATCH(StoreRowImpl)(source, count, dtype, target);
}

void GatherRows(const Rows& rows, std::int64_t begin, std::int64_t count, std::int64_t depth,
                float* target) {
  HWY_DYNAMIC_DISPATCH(GatherRowsImpl)(rows, begin, count, depth, target);
}

float MaxAbs(const Rows& rows, std::int64_t begin, std::int64_t end, std::int64_t depth) {
  return HWY_DYNAMIC_DISPATCH(MaxAbsImpl)(rows, begin, end, depth);
}

void ProjectRows(const ProjectTask& task) { HWY_DYNAMIC_DISPATCH(ProjectRowsImpl)(task); }

void Exp(const float* x, float* result, std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(ExpImpl)(x, result, count);
}

namespace {

std::vector<std::int64_t> Targets() {
  std::vector<std::int64_t> targets;  // the lowest bit is the best
  for (std::int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1) {
    targets.push_back(left & -left);
  }
  return targets;
}

// What dispatch runs; written by ForceInstructionSet only, which tests call between computations.
std::int64_t forced_target = 0;

}  // namespace

std::vector<std::string> InstructionSets() {
  std::vector<std::string> names;
  for (const std::int64_t target : Targets()) names.emplace_back(hwy::TargetName(target));
  return names;
}

bool ForceInstructionSet(const std::string& name) {
  for (const std::int64_t target : Targets()) {
    if (name.empty() || name == hwy::TargetName(target)) {
      forced_target = target;
      hwy::GetChosenTarget().Update(target);
      return true;
    }
  }
  return false;
}

const char* InstructionSet() {
  return hwy::TargetName(forced_target != 0 ? forced_target : Targets().front());
}

}  // namespace smyrf::kernels
#endif
