// Random calls over everything that the contract allows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "testing/call.h"

namespace smyrf::testing {

/// A bool mask (1, 1, B, N): with padding on the left, on the right, or anywhere; now and then
/// everything or nothing of a batch entry.
inline Tensor RandomPadding(Random& random, std::int64_t batch, std::int64_t length) {
  Tensor mask(DType::kBool, {1, 1, batch, length},
              random.Of({Layout::kContiguous, Layout::kGaps, Layout::kColumns}));
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t kind = random.Below(8);
    const std::int64_t cut = random.Below(length + 1);
    for (std::int64_t i = 0; i < length; ++i) {
      const bool valid = kind == 0   ? true
                         : kind == 1 ? false
                         : kind <= 3 ? i >= cut
                         : kind <= 5 ? i < cut
                                     : random.Chance(0.7);
      mask.set(0, 0, b, i, valid ? 1.0 : 0.0);
    }
  }
  return mask;
}

inline void AddRandomMask(Random& random, Call& call) {
  const Shape& s = call.shape;
  const DType dtype = random.Of({DType::kBool, DType::kFloat32, DType::kFloat16, DType::kBFloat16});
  const auto size = [&](std::int64_t full) { return random.Chance(0.3) ? 1 : full; };
  Tensor::Index shape{size(s.batch), size(s.query_heads), size(s.queries), size(s.keys)};
  call.attn_mask_rank = static_cast<int>(random.Between(1, 4));
  for (std::size_t i = 0; i < static_cast<std::size_t>(4 - call.attn_mask_rank); ++i) shape[i] = 1;
  Tensor mask(dtype, shape,
              random.Of({Layout::kContiguous, Layout::kBnhd, Layout::kGaps, Layout::kReversed,
                         Layout::kColumns}));
  const double forbidden = random.Of({0.0, 0.1, 0.6});
  mask.ForEach([&](auto b, auto h, auto i, auto j) {
    const bool out = random.Chance(forbidden);
    if (dtype == DType::kBool) {
      mask.set(b, h, i, j, out ? 0.0 : 1.0);
    } else {
      mask.set(b, h, i, j, out ? -kInfinity : 2.0 * random.Normal());
    }
  });
  // Rows that see nothing.
  if (random.Chance(0.3)) {
    mask.FillRow(0, 0, random.Below(shape[2]), dtype == DType::kBool ? 0.0 : -kInfinity);
  }
  call.attn_mask = mask;
}

/// Sizes of blocks, tiles and vectors, one less, one more, and anything between.
inline std::int64_t RandomLength(Random& random, std::int64_t largest) {
  const std::int64_t special = random.Of<std::int64_t>(
      {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192, 255, 256, 257});
  return std::min(largest, random.Chance(0.6) ? special : random.Between(1, largest));
}

/// A call without masks and options. About `work` multiply-adds at most.
inline Call RandomRows(Random& random, double work) {
  Shape s;
  s.batch = random.Of<std::int64_t>({1, 1, 2, 3});
  s.key_heads = random.Of<std::int64_t>({1, 1, 2, 3});
  s.query_heads = s.key_heads * random.Of<std::int64_t>({1, 1, 2, 3});
  s.depth = random.Of<std::int64_t>({1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 64, 64, 80, 128, 512});
  s.value_depth = random.Chance(0.5)
                      ? s.depth
                      : random.Of<std::int64_t>({1, 2, 3, 5, 8, 17, 32, 64, 65, 96, 128, 511, 512});
  const double pairs = work / static_cast<double>(s.batch * s.query_heads) /
                       static_cast<double>(s.depth + s.value_depth);
  s.queries = std::min(RandomLength(random, 300), static_cast<std::int64_t>(pairs / 8.0) + 1);
  s.keys = std::min(RandomLength(random, 400),
                    static_cast<std::int64_t>(pairs / static_cast<double>(s.queries)) + 8);
  const auto layout = [&] {
    return random.Of({Layout::kContiguous, Layout::kBnhd, Layout::kGaps, Layout::kReversed,
                      Layout::kOneHead, Layout::kOneBatch, Layout::kHeadsReversed});
  };
  const DType dtype = random.Of({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
  Call call(s, dtype, layout(), layout(), layout());
  call.FillNormal(random);
  // Threads have tests of their own; here they only take part.
  call.options.num_threads = random.Chance(0.15) ? 2 : 1;
  if (random.Chance(0.3)) call.options.scale = random.Of({0.05, 0.5, 1.0});
  return call;
}

inline void AddRandomPadding(Random& random, Call& call) {
  const Shape& s = call.shape;
  const bool poisoned = random.Chance(0.5);  // rows that must not be loaded hold NaN
  if (random.Chance(0.4)) {
    call.key_padding_mask = RandomPadding(random, s.batch, s.keys);
    for (std::int64_t b = 0; b < s.batch && poisoned; ++b) {
      for (std::int64_t h = 0; h < s.key_heads; ++h) {
        for (std::int64_t j = 0; j < s.keys; ++j) {
          // A row that several batch entries share must be padded in all of them.
          bool valid = false;
          for (std::int64_t other = 0; other < s.batch; ++other) {
            valid = valid || call.IsValidKey(other, j);
          }
          if (!valid) {
            call.key.FillRow(b, h, j, kNaN);
            call.value.FillRow(b, h, j, kNaN);
          }
        }
      }
    }
  }
  if (random.Chance(0.4)) call.query_padding_mask = RandomPadding(random, s.batch, s.queries);
}

/// Any call that `dense` takes.
inline Call RandomDenseCall(Random& random, double work) {
  Call call = RandomRows(random, work);
  const Shape& s = call.shape;
  call.options.method = random.Of({Method::kAuto, Method::kDense});
  if (random.Chance(0.1)) call.options.scale = random.Of({0.0, -0.3});
  call.options.is_causal = random.Chance(0.3);
  if (random.Chance(0.3)) {
    const auto side = [&] { return random.Of<std::int64_t>({-1, 0, 1, 7, s.keys / 2, 1000000}); };
    call.options.window = Window{side(), side()};
  }
  AddRandomPadding(random, call);
  if (random.Chance(0.4)) AddRandomMask(random, call);
  return call;
}

/// Any call that `lsh` takes.
inline Call RandomLshCall(Random& random, double work) {
  Call call = RandomRows(random, work);
  call.options.method = Method::kLsh;
  call.options.n_hashes = random.Between(1, 5);
  call.options.cluster_size = random.Of<std::int64_t>({1, 2, 3, 8, 20, 32, 1000});
  call.options.seed = static_cast<std::uint64_t>(random.Below(1000));
  AddRandomPadding(random, call);
  return call;
}

/// Any call that `tree` takes. Most have more keys than are needed for a tree, and a cap of the
/// density, with which heads are not done as dense because that would be cheaper.
inline Call RandomTreeCall(Random& random, double work) {
  const Call rows = RandomRows(random, work);
  Shape s = rows.shape;
  if (random.Chance(0.9)) {
    s.keys =
        random.Chance(0.5)
            ? random.Of<std::int64_t>({64, 65, 71, 72, 73, 79, 80, 81, 127, 128, 129, 144, 257})
            : random.Between(64, 600);
  }
  const auto layout = [&] {
    return random.Of({Layout::kContiguous, Layout::kBnhd, Layout::kGaps, Layout::kReversed,
                      Layout::kOneHead, Layout::kOneBatch, Layout::kHeadsReversed});
  };
  Call call(s, rows.query.dtype(), layout(), layout(), layout());
  call.options = rows.options;
  call.query.FillNormal(random, random.Of({0.3, 1.0, 3.0}));
  call.key.FillNormal(random);
  call.value.FillNormal(random);
  call.options.method = Method::kTree;
  call.options.tolerance = random.Of({0.05, 0.3, 0.9});
  if (random.Chance(0.9)) call.options.max_density = random.Of({0.2, 0.5, 0.9, 1.0});
  call.options.seed = static_cast<std::uint64_t>(random.Below(1000));
  AddRandomPadding(random, call);
  return call;
}

/// Fills query, key and value so that few summaries do: points of a plane in D dimensions, with
/// values that are a smooth function of them and a constant.
inline void FillSmooth(Random& random, Call& call) {
  const Shape& s = call.shape;
  const auto numbers = [&](std::int64_t count) {
    std::vector<double> result(static_cast<std::size_t>(count));
    for (double& number : result) number = random.Normal();
    return result;
  };
  const std::vector<double> plane = numbers(2 * s.depth);
  const std::vector<double> waves = numbers(2 * s.value_depth);
  const auto fill = [&](Tensor& rows, Tensor* values) {
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t h = 0; h < rows.shape()[1]; ++h) {
        for (std::int64_t i = 0; i < rows.shape()[2]; ++i) {
          const double x = random.Normal();
          const double y = random.Normal();
          for (std::int64_t c = 0; c < s.depth; ++c) {
            const auto at = static_cast<std::size_t>(2 * c);
            rows.set(b, h, i, c, x * plane[at] + y * plane[at + 1]);
          }
          for (std::int64_t c = 0; c < s.value_depth && values != nullptr; ++c) {
            const auto at = static_cast<std::size_t>(2 * c);
            values->set(b, h, i, c, 1.0 + std::sin(x * waves[at] + y * waves[at + 1]));
          }
        }
      }
    }
  };
  fill(call.query, nullptr);
  fill(call.key, &call.value);
}

}  // namespace smyrf::testing
