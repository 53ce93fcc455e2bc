#include "methods/tree/kernels/split.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include "methods/tree/kernels/nodes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "methods/tree/kernels/split.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "simd/tile-inl.h"

#ifndef SMYRF_SPLIT_ONCE_
#define SMYRF_SPLIT_ONCE_
namespace smyrf::kernels {
namespace {

constexpr std::int64_t kDirectionRows = 128;  // that directions are computed from
constexpr int kIterations = 2;
constexpr std::int64_t kColumns = kSplitCoordinates + 1;
constexpr std::int64_t kPadding = 16;  // floats: no vector is longer

}  // namespace
}  // namespace smyrf::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace smyrf::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using BitsTag = hn::RebindToUnsigned<FloatTag>;

/// Projections of rows on a direction, as bits whose unsigned order is that of floats but for the
/// lowest bit: it is set, so that 0 is below all of them. Behind the last row lie keys that are
/// below nothing.
HWY_NOINLINE void ProjectionKeys(const SplitRows& rows, std::int64_t begin, std::int64_t count,
                                 const float* direction, std::uint32_t* keys) {
  const FloatTag d;
  const BitsTag du;
  const hn::RebindToSigned<FloatTag> di;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::Vec<FloatTag> factor[kSplitCoordinates];
  for (std::int64_t c = 0; c < kSplitCoordinates; ++c) factor[c] = hn::Set(d, direction[c]);
  for (std::int64_t i = 0; i < count; i += lanes) {
    const float* row = rows.columns.get() + begin + i;
    auto even = hn::Zero(d);
    auto odd = hn::Zero(d);
    SMYRF_UNROLL
    for (std::int64_t c = 0; c < kSplitCoordinates; c += 2) {
      even = hn::MulAdd(hn::LoadU(d, row + c * rows.stride), factor[c], even);
      odd = hn::MulAdd(hn::LoadU(d, row + (c + 1) * rows.stride), factor[c + 1], odd);
    }
    const auto bits = hn::BitCast(di, hn::Add(even, odd));
    const auto flip = hn::Or(hn::BitCast(du, hn::ShiftRight<31>(bits)), hn::Set(du, 0x80000000U));
    const auto key = hn::Or(hn::Xor(hn::BitCast(du, bits), flip), hn::Set(du, 1U));
    hn::StoreU(key, du, keys + i);
  }
  std::fill_n(keys + count, lanes, 0xFFFFFFFFU);
}

/// A limit that `left` of the keys are below. Where it parts equal keys, the first become 0.
HWY_NOINLINE std::uint32_t FindLimit(std::uint32_t* keys, std::int64_t count, std::int64_t left) {
  const BitsTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto ones = hn::Set(d, keys[0]);  // bits that all keys have, and that any has
  auto any = ones;
  for (std::int64_t i = 0; i + lanes <= count; i += lanes) {
    const auto key = hn::LoadU(d, keys + i);
    ones = hn::And(ones, key);
    any = hn::Or(any, key);
  }
  HWY_ALIGN std::uint32_t all_of[kPadding];
  HWY_ALIGN std::uint32_t any_of[kPadding];
  hn::Store(ones, d, all_of);
  hn::Store(any, d, any_of);
  for (std::int64_t i = 1; i < lanes; ++i) {
    all_of[0] &= all_of[i];
    any_of[0] |= any_of[i];
  }
  for (std::int64_t i = count / lanes * lanes; i < count; ++i) {
    all_of[0] &= keys[i];
    any_of[0] |= keys[i];
  }
  const std::uint32_t differing = all_of[0] ^ any_of[0];
  std::uint32_t bit = std::bit_floor(differing);
  std::uint32_t limit = bit > 0 ? keys[0] & ~(2 * bit - 1) : keys[0];
  std::int64_t below = 0;
  for (; bit > 0; bit /= 2) {
    if ((differing & bit) == 0) {
      limit |= all_of[0] & bit;
      continue;
    }
    const auto tried = hn::Set(d, limit | bit);
    std::int64_t found = 0;
    for (std::int64_t i = 0; i < count; i += lanes) {
      found += static_cast<std::int64_t>(hn::CountTrue(d, hn::Lt(hn::LoadU(d, keys + i), tried)));
    }
    if (found > left) continue;
    limit |= bit;
    below = found;
    if (found == left) return limit;
  }
  // `limit` is the key of rank `left`, and as many of its equals go to the left as find room.
  for (std::int64_t i = 0; below < left; ++i) {
    if (keys[i] != limit) continue;
    keys[i] = 0;
    ++below;
  }
  return limit;
}

/// `count` of the rows [begin, begin + all), less their mean, to tile (kSplitCoordinates,
/// kDirectionRows), with 0 behind them up to `padded`.
HWY_INLINE void LoadCentred(const SplitRows& rows, std::int64_t begin, std::int64_t all,
                            std::int64_t count, std::int64_t padded, float* tile) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t step = all / count;
  // All, or one of each equal stretch of rows, at a place that no period of theirs follows.
  std::int64_t places[kDirectionRows];
  for (std::int64_t i = 0; i < count; ++i) {
    const auto within = std::uint64_t{static_cast<std::uint32_t>(i) * 0x9E3779B9U};
    places[i] = i * all / count +
                static_cast<std::int64_t>(within * static_cast<std::uint64_t>(step) >> 32);
  }
  for (std::int64_t c = 0; c < kSplitCoordinates; ++c) {
    const float* column = rows.columns.get() + c * rows.stride + begin;
    float* to = tile + c * kDirectionRows;
    if (all == count) {
      std::copy_n(column, count, to);
    } else {
      for (std::int64_t i = 0; i < count; ++i) to[i] = column[places[i]];
    }
    std::fill(to + count, to + padded, 0.0F);
    auto sum = hn::Zero(d);
    for (std::int64_t i = 0; i < padded; i += lanes) sum = hn::Add(sum, hn::Load(d, to + i));
    const auto mean = hn::Mul(hn::SumOfLanes(d, sum), hn::Set(d, 1.0F / static_cast<float>(count)));
    for (std::int64_t i = 0; i < padded; i += lanes) {
      hn::Store(hn::Sub(hn::Load(d, to + i), mean), d, to + i);
    }
    std::fill(to + count, to + padded, 0.0F);
  }
}

/// direction (kSplitCoordinates) = the leading principal one of the rows, of length 1; zero where
/// they agree. Power iterations start from the row that is farthest from their mean.
HWY_NOINLINE void PrincipalDirection(const SplitRows& rows, std::int64_t begin, std::int64_t all,
                                     float* direction) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t count = std::min(all, kDirectionRows);
  const std::int64_t padded = (count + lanes - 1) / lanes * lanes;
  HWY_ALIGN float tile[kSplitCoordinates * kDirectionRows];
  HWY_ALIGN float along[kDirectionRows];
  LoadCentred(rows, begin, all, count, padded, tile);
  // along[i] = sum over c of factor(c, i) * tile[c][i]
  const auto project = [&](const auto& factor) HWY_ATTR {
    for (std::int64_t i = 0; i < padded; i += lanes) {
      auto even = hn::Zero(d);
      auto odd = hn::Zero(d);
      SMYRF_UNROLL
      for (std::int64_t c = 0; c < kSplitCoordinates; c += 2) {
        const auto x = hn::Load(d, tile + c * kDirectionRows + i);
        const auto y = hn::Load(d, tile + (c + 1) * kDirectionRows + i);
        even = hn::MulAdd(x, factor(c, x), even);
        odd = hn::MulAdd(y, factor(c + 1, y), odd);
      }
      hn::Store(hn::Add(even, odd), d, along + i);
    }
  };
  project([](std::int64_t, auto x) HWY_ATTR { return x; });
  std::int64_t farthest = 0;  // any row where distances overflow: NaN is not above another
  for (std::int64_t i = 1; i < count; ++i) {
    if (along[i] > along[farthest]) farthest = i;
  }
  for (std::int64_t c = 0; c < kSplitCoordinates; ++c) {
    direction[c] = tile[c * kDirectionRows + farthest];
  }
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    project([&](std::int64_t c, auto) HWY_ATTR { return hn::Set(d, direction[c]); });
    float square = 0.0F;
    for (std::int64_t c = 0; c < kSplitCoordinates; ++c) {
      auto sum = hn::Zero(d);
      for (std::int64_t i = 0; i < padded; i += lanes) {
        sum = hn::MulAdd(hn::Load(d, along + i), hn::Load(d, tile + c * kDirectionRows + i), sum);
      }
      direction[c] = hn::GetLane(hn::SumOfLanes(d, sum));
      square += direction[c] * direction[c];
    }
    const float norm = std::sqrt(square);
    if (!(norm > 0.0F && norm < std::numeric_limits<float>::infinity())) {
      std::fill_n(direction, kSplitCoordinates, 0.0F);
      return;
    }
    for (std::int64_t c = 0; c < kSplitCoordinates; ++c) direction[c] /= norm;
  }
}

/// direction = the mean of the rows whose keys are not below the limit, less that of the others.
HWY_NOINLINE void SeparatingDirection(const SplitRows& rows, std::int64_t begin, std::int64_t count,
                                      std::int64_t left, const std::uint32_t* keys,
                                      std::uint32_t limit, float* direction) {
  const FloatTag d;
  const BitsTag du;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto bound = hn::Set(du, limit);
  const float of_left = 1.0F / static_cast<float>(left);
  const float of_right = 1.0F / static_cast<float>(count - left);
  for (std::int64_t c = 0; c < kSplitCoordinates; ++c) {
    const float* column = rows.columns.get() + c * rows.stride + begin;
    auto below = hn::Zero(d);
    auto above = hn::Zero(d);
    const auto add = [&](std::int64_t i, auto x) HWY_ATTR {
      const auto is_below = hn::RebindMask(d, hn::Lt(hn::LoadU(du, keys + i), bound));
      below = hn::Add(below, hn::IfThenElseZero(is_below, x));
      above = hn::Add(above, hn::IfThenZeroElse(is_below, x));
    };
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) add(i, hn::LoadU(d, column + i));
    if (i < count) {
      const auto valid = hn::FirstN(d, static_cast<std::size_t>(count - i));
      add(i, hn::IfThenElseZero(valid, hn::LoadU(d, column + i)));
    }
    direction[c] = of_right * hn::GetLane(hn::SumOfLanes(d, above)) -
                   of_left * hn::GetLane(hn::SumOfLanes(d, below));
  }
}

/// Rows whose keys are below the limit to the front, of one column.
HWY_INLINE void PartColumn(float* column, std::int64_t count, const std::uint32_t* keys,
                           std::uint32_t limit, float* right) {
  const FloatTag d;
  const BitsTag du;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto bound = hn::Set(du, limit);
  std::int64_t below = 0;
  for (std::int64_t i = 0; i < count; i += lanes) {
    const auto x = hn::LoadU(d, column + i);
    const auto is_below = hn::RebindMask(d, hn::Lt(hn::LoadU(du, keys + i), bound));
    const std::size_t found = hn::CountTrue(d, is_below);
    // What lies behind the rows of a vector is overwritten, or was read.
    hn::StoreU(hn::CompressNot(x, is_below), d, right + i - below);
    const auto front = hn::Compress(x, is_below);
    if (i + lanes <= count) {
      hn::StoreU(front, d, column + below);
    } else {
      hn::BlendedStore(front, hn::FirstN(d, found), d, column + below);
    }
    below += static_cast<std::int64_t>(found);
  }
  std::copy_n(right, count - below, column + below);
}

void SplitImpl(const SplitRows& rows, std::int64_t begin, std::int64_t end, std::int64_t left) {
  const std::int64_t count = end - begin;
  auto* keys = reinterpret_cast<std::uint32_t*>(rows.keys.get());
  HWY_ALIGN float direction[kSplitCoordinates];
  PrincipalDirection(rows, begin, count, direction);
  ProjectionKeys(rows, begin, count, direction, keys);
  const std::uint32_t limit = FindLimit(keys, count, left);
  SeparatingDirection(rows, begin, count, left, keys, limit, direction);
  ProjectionKeys(rows, begin, count, direction, keys);
  const std::uint32_t last = FindLimit(keys, count, left);
  for (std::int64_t c = 0; c < kColumns; ++c) {
    PartColumn(rows.columns.get() + c * rows.stride + begin, count, keys, last, rows.right.get());
  }
}

}  // namespace smyrf::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace smyrf::kernels {

HWY_EXPORT(SplitImpl);

void Split(const SplitRows& rows, std::int64_t begin, std::int64_t end, std::int64_t left) {
  HWY_DYNAMIC_DISPATCH(SplitImpl)(rows, begin, end, left);
}

SplitRows LoadSplitRows(const float* coordinates, std::span<const std::int32_t> order) {
  const std::int64_t count = std::ssize(order);
  // An odd number of cache lines: columns a power of two apart would share their places in the
  // cache.
  const std::int64_t stride = ((count + 2 * kPadding - 1) / kPadding | 1) * kPadding;
  SplitRows rows{Floats(kColumns * stride), Floats(count + kPadding), Floats(count + kPadding),
                 stride};
  float* columns = rows.columns.get();
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t row = order[static_cast<std::size_t>(i)];
    const float* from = coordinates + std::int64_t{row} * kCoordinates;
    for (std::int64_t c = 0; c < kSplitCoordinates; ++c) columns[c * stride + i] = from[c];
    columns[kSplitCoordinates * stride + i] = std::bit_cast<float>(row);
  }
  for (std::int64_t c = 0; c < kColumns; ++c) {
    std::fill(columns + c * stride + count, columns + (c + 1) * stride, 0.0F);
  }
  return rows;
}

void StoreOrder(const SplitRows& rows, std::span<std::int32_t> order) {
  std::memcpy(order.data(), rows.columns.get() + kSplitCoordinates * rows.stride,
              order.size_bytes());
}

}  // namespace smyrf::kernels
#endif
