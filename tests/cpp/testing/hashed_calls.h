// The calls whose results have hashes in tests/data. Their numbers are sums of integers, so that
// they are the same on every machine: the C library's log and cos may not be.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "testing/random_call.h"

namespace smyrf::testing {

/// Nearly normal, of deviation 1.15: a sum of four integers.
inline double SumOfIntegers(Random& random) {
  auto bits = static_cast<std::uint64_t>(random.Below(INT64_MAX));
  std::int64_t sum = 0;
  for (int i = 0; i < 4; ++i, bits >>= 15) sum += static_cast<std::int64_t>(bits & 0x7FFF) - 0x4000;
  return static_cast<double>(sum) * 0x1p-14;
}

inline void Fill(Random& random, Tensor& tensor) {
  tensor.ForEach([&](auto... at) { tensor.set(at..., SumOfIntegers(random)); });
}

inline Call Filled(Random& random, Call call) {
  Fill(random, call.query);
  Fill(random, call.key);
  Fill(random, call.value);
  return call;
}

/// A random call with other numbers. What is NaN or infinite stays.
inline Call Refilled(Random& random, Call call, double size = 1.0) {
  const auto refill = [&](Tensor& tensor, double factor) {
    tensor.ForEach([&](auto... at) {
      if (std::isfinite(tensor.at(at...))) tensor.set(at..., factor * SumOfIntegers(random));
    });
  };
  refill(call.query, size);
  refill(call.key, 1.0);
  refill(call.value, 1.0);
  if (call.attn_mask && call.attn_mask->dtype() != DType::kBool) refill(*call.attn_mask, 1.0);
  return call;
}

/// Points of a plane in D dimensions, with values that are a polynomial of them: few summaries do.
inline Call Smooth(Random& random, Call call) {
  const Shape& s = call.shape;
  std::vector<double> plane(static_cast<std::size_t>(2 * (s.depth + s.value_depth)));
  for (double& number : plane) number = SumOfIntegers(random);
  const auto fill = [&](Tensor& rows, Tensor* values) {
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t h = 0; h < rows.shape()[1]; ++h) {
        for (std::int64_t i = 0; i < rows.shape()[2]; ++i) {
          const double x = SumOfIntegers(random);
          const double y = SumOfIntegers(random);
          // An explicit fma: a compiler may or may not fuse a product and a sum.
          const auto on_plane = [&](std::int64_t c) {
            const auto at = static_cast<std::size_t>(2 * c);
            return std::fma(x, plane[at], y * plane[at + 1]);
          };
          for (std::int64_t c = 0; c < s.depth; ++c) rows.set(b, h, i, c, on_plane(c));
          for (std::int64_t c = 0; c < s.value_depth && values != nullptr; ++c) {
            const double z = on_plane(s.depth + c);
            values->set(b, h, i, c, std::fma(-0.125 * z, z, 1.0));
          }
        }
      }
    }
  };
  fill(call.query, nullptr);
  fill(call.key, &call.value);
  return call;
}

inline Tensor RightPadding(std::int64_t batch, std::int64_t length) {
  Tensor mask(DType::kBool, {1, 1, batch, length});
  mask.ForEach([&](auto, auto, auto b, auto i) {
    mask.set(0, 0, b, i, i < length - 9 - 17 * b ? 1.0 : 0.0);
  });
  return mask;
}

inline Tensor FullMask(Random& random, DType dtype, const Shape& s) {
  Tensor mask(dtype, {s.batch, s.query_heads, s.queries, s.keys});
  mask.ForEach([&](auto... at) {
    const bool allowed = random.Below(8) != 0;
    mask.set(at..., dtype == DType::kBool ? (allowed ? 1.0 : 0.0)
                    : allowed             ? SumOfIntegers(random)
                                          : -kInfinity);
  });
  return mask;
}

inline constexpr DType kFloats[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
inline constexpr Method kMethods[] = {Method::kDense, Method::kLsh, Method::kTree};

inline void SetDials(Call& call, Method method) {
  call.options.method = method;
  if (method == Method::kLsh) call.options.cluster_size = 24;
  if (method == Method::kTree) {
    call.options.tolerance = 0.3;
    call.options.max_density = 0.6;  // or small heads would be dense
  }
}

/// Everything that `dense` takes, each alone, in every dtype.
inline std::vector<Call> DenseCalls() {
  Random random(1);
  std::vector<Call> calls;
  const Shape s{2, 4, 2, 70, 150, 64, 40};
  for (const DType dtype : kFloats) {
    for (int kind = 0; kind < 8; ++kind) {
      Call call(s, dtype);
      call.options.method = Method::kDense;
      call.options.is_causal = kind == 1;
      if (kind == 2) call.options.window = Window{30, 10};
      if (kind == 3) call.attn_mask = FullMask(random, DType::kBool, s);
      if (kind == 4) call.attn_mask = FullMask(random, dtype, s);
      if (kind == 5) call.key_padding_mask = RightPadding(s.batch, s.keys);
      if (kind >= 6) call.query_padding_mask = RightPadding(s.batch, s.queries);
      if (kind == 7) {
        call.options.is_causal = true;
        call.key_padding_mask = RightPadding(s.batch, s.keys);
      }
      calls.push_back(Filled(random, call));
    }
  }
  while (calls.size() < 96) calls.push_back(Refilled(random, RandomDenseCall(random, 1e5)));
  return calls;
}

/// Keys in chunks, for one query, for few and for a block.
inline std::vector<Call> FewQueryCalls() {
  Random random(2);
  std::vector<Call> calls;
  for (const std::int64_t queries : {1, 2, 3, 5, 8, 17, 64}) {
    for (int kind = 0; kind < 4; ++kind) {
      const Shape s{1, kind == 1 ? 4 : 1, 1, queries, kind == 0 ? 9001 : 4500, 16, 16};
      Call call(s,
                kFloats[(static_cast<std::size_t>(queries) + static_cast<std::size_t>(kind)) % 3]);
      call.options.method = Method::kDense;
      call.options.is_causal = kind == 1;
      if (kind == 2) call.options.window = Window{3000, -1};
      if (kind == 3) call.key_padding_mask = RightPadding(s.batch, s.keys);
      if (kind == 3) call.attn_mask = FullMask(random, DType::kFloat32, s);
      calls.push_back(Filled(random, call));
    }
  }
  return calls;
}

inline std::vector<Call> LshCalls() {
  Random random(3);
  std::vector<Call> calls;
  for (const DType dtype : kFloats) {
    for (const std::int64_t heads : {1, 6}) {
      for (const std::int64_t cluster : {10, 1000}) {  // the second is a single cluster: dense
        Call call({1, heads, heads, 130, 140, 32, 16}, dtype);
        SetDials(call, Method::kLsh);
        call.options.cluster_size = cluster;
        calls.push_back(Filled(random, call));
      }
    }
  }
  while (calls.size() < 48) calls.push_back(Refilled(random, RandomLshCall(random, 1e5)));
  return calls;
}

inline std::vector<Call> TreeCalls() {
  Random random(4);
  std::vector<Call> calls;
  for (const DType dtype : kFloats) {
    for (const std::int64_t heads : {1, 4}) {
      Call call({1, heads, heads, 230, 500, 16, 16}, dtype);
      call.options.method = Method::kTree;
      calls.push_back(Smooth(random, call));
    }
    for (const double tolerance : {0.0, 0.02, 0.3}) {
      Call call({2, 2, 1, 200, 400, 32, 24}, dtype);
      call.options.method = Method::kTree;
      call.options.tolerance = tolerance;
      call.options.seed = 7;
      call.key_padding_mask = RightPadding(2, 400);
      if (tolerance > 0.0) call.query_padding_mask = RightPadding(2, 200);
      calls.push_back(Smooth(random, call));
    }
  }
  while (calls.size() < 42) {
    const double size = random.Of({0.3, 1.0, 3.0});
    const Call call = RandomTreeCall(random, 1e5);
    // The basis of more dimensions takes longer than all else.
    if (call.shape.depth <= 80) calls.push_back(Refilled(random, call, size));
  }
  return calls;
}

/// The method is the library's choice, on both sides of its bounds.
inline std::vector<Call> AutoCalls() {
  Random random(5);
  std::vector<Call> calls;
  for (const Shape& s : {Shape{1, 1, 1, 2048, 2048, 8, 8}, Shape{1, 2, 1, 1536, 1536, 8, 8},
                         Shape{1, 1, 1, 2047, 2048, 8, 8}, Shape{2, 2, 2, 40, 50, 16, 16}}) {
    calls.push_back(Smooth(random, Call(s)));
  }
  return calls;
}

/// Queries of one dtype over keys and values of another.
inline std::vector<Call> MixedCalls() {
  Random random(6);
  std::vector<Call> calls;
  for (const Method method : kMethods) {
    for (const auto& [query, key] :
         {std::pair{DType::kFloat32, DType::kFloat16}, std::pair{DType::kFloat32, DType::kBFloat16},
          std::pair{DType::kBFloat16, DType::kFloat32}}) {
      for (const std::int64_t queries : {3, 140}) {
        Call call({1, 4, 2, queries, 170, 24, 20}, key);
        call.query = Tensor(query, call.query.shape(), Layout::kBnhd);
        SetDials(call, method);
        calls.push_back(Filled(random, call));
      }
    }
  }
  return calls;
}

inline std::vector<Call> DropoutCalls() {
  Random random(7);
  std::vector<Call> calls;
  while (calls.size() < 36) {
    Call call = Refilled(
        random, calls.size() % 2 == 0 ? RandomDenseCall(random, 1e5) : RandomLshCall(random, 1e5));
    call.options.dropout_p = random.Of({0.1, 0.3, 0.5});
    call.options.seed = static_cast<std::uint64_t>(random.Below(1000));
    calls.push_back(call);
  }
  for (const std::int64_t queries : {1, 20}) {
    Call call({1, 1, 1, queries, 4500, 8, 8});
    call.options.method = Method::kDense;
    call.options.dropout_p = 0.2;
    calls.push_back(Filled(random, call));
  }
  return calls;
}

/// One number of one head is NaN or infinite, or a whole row is large.
inline std::vector<Call> NonFiniteCalls() {
  Random random(8);
  std::vector<Call> calls;
  for (const Method method : kMethods) {
    for (int kind = 0; kind < 8; ++kind) {
      const double strange = kind % 2 == 0 ? kNaN : kInfinity;
      Call call({2, 2, 1, 130, 150, 16, 8}, kFloats[static_cast<std::size_t>(kind) % 3]);
      SetDials(call, method);
      call.query_padding_mask = RightPadding(2, 130);
      call = Filled(random, call);
      if (kind / 2 == 0) call.query.set(1, 1, 5, 3, strange);
      if (kind / 2 == 1) call.key.set(0, 0, 77, 3, strange);
      if (kind / 2 == 2) call.value.set(1, 0, 12, 3, strange);
      if (kind / 2 == 3) call.query.FillRow(1, 1, 125, strange);  // padded
      calls.push_back(call);
    }
  }
  return calls;
}

}  // namespace smyrf::testing
