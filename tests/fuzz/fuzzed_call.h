// A call of the library made from the fuzzer's bytes.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <optional>

#include "testing/random_call.h"

namespace smyrf::fuzz {

using testing::Call;
using testing::Layout;
using testing::Random;
using testing::Shape;
using testing::Tensor;

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : provider_(data, size) {}

  template <class T>
  T Between(T first, T last) {
    return provider_.ConsumeIntegralInRange<T>(first, last);
  }
  template <class T>
  T Of(std::initializer_list<T> choices) {
    return *std::next(choices.begin(),
                      Between<std::ptrdiff_t>(0, static_cast<std::ptrdiff_t>(choices.size()) - 1));
  }
  /// One value of the byte in 2^bits: never, when the bytes are used up.
  bool Rarely(int bits = 4) { return Between(0, (1 << bits) - 1) == 1; }
  template <class T>
  T Any() {
    return provider_.ConsumeIntegral<T>();
  }
  double AnyDouble() {
    return provider_.ConsumeBool() ? provider_.ConsumeFloatingPoint<double>()
                                   : Of({0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 2e38, 1e300,
                                         testing::kInfinity, -testing::kInfinity, testing::kNaN});
  }
  std::int64_t AnyCount() {
    return Of<std::int64_t>({-1, 0, 1, 2, 3, 17, 4096, 4097, std::numeric_limits<int>::max(),
                             std::numeric_limits<std::int64_t>::max(),
                             std::numeric_limits<std::int64_t>::min()});
  }

 private:
  FuzzedDataProvider provider_;
};

struct FuzzedCall {
  Call call;
  Layout out_layout = Layout::kContiguous;
  /// Nothing about it is against the contract, so that it may not be refused.
  bool is_legal = true;
};

/// Multiply-adds of one head, about: what the plain loops under the sanitizers do in a millisecond.
inline constexpr std::int64_t kWork = 60000;

inline FuzzedCall FuzzShape(Bytes& bytes, Method method) {
  FuzzedCall fuzzed;
  Shape s;
  s.batch = bytes.Of<std::int64_t>({1, 1, 1, 2, 3, 0});
  s.key_heads = bytes.Of<std::int64_t>({1, 1, 2, 0});
  s.query_heads = s.key_heads * bytes.Of<std::int64_t>({1, 1, 2, 3});
  s.depth = bytes.Of<std::int64_t>({4, 1, 2, 3, 7, 8, 16, 17, 31, 32, 33, 40, 512});
  // Eigenvectors of so many dimensions take seconds under the sanitizers.
  if (method == Method::kTree) s.depth = std::min<std::int64_t>(s.depth, 40);
  s.value_depth = bytes.Of<std::int64_t>({4, 1, 2, 3, 5, 8, 16, 17, 33, 512});
  const std::int64_t width = s.depth + s.value_depth;
  if (width > 80) s.batch = s.query_heads = s.key_heads = 1;
  const bool many = method == Method::kTree && !bytes.Rarely(2);  // fewer make no tree
  s.keys = many ? bytes.Between<std::int64_t>(64, 300) : bytes.Between<std::int64_t>(0, 80);
  if (s.keys > 64 && s.keys * width * s.batch * s.query_heads > kWork) s.keys = 64;
  s.queries = bytes.Between<std::int64_t>(0, 70);
  const std::int64_t a_query = std::max<std::int64_t>(1, s.batch * s.query_heads * s.keys * width);
  s.queries = std::min(s.queries, kWork / a_query + 1);
  const auto layout = [&] {
    return bytes.Of({Layout::kContiguous, Layout::kBnhd, Layout::kGaps, Layout::kReversed,
                     Layout::kOneHead, Layout::kOneBatch, Layout::kHeadsReversed});
  };
  const DType dtype = bytes.Of({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
  const Layout of_query = layout();
  const Layout of_key = layout();
  fuzzed.call = Call(s, dtype, of_query, of_key, layout());
  fuzzed.out_layout = bytes.Of({Layout::kContiguous, Layout::kBnhd, Layout::kGaps,
                                Layout::kReversed, Layout::kHeadsReversed});
  fuzzed.call.options.method = method;
  return fuzzed;
}

/// Numbers of one kind, and a few of another.
inline void FuzzElements(Bytes& bytes, Tensor& tensor) {
  Random random(bytes.Any<std::uint16_t>());
  const double size = bytes.Of({1.0, 0.3, 3.0, 10.0, 1e-3, 1e-20, 1e-39, 1e-44, 1e4, 1e18, 3e38});
  const int kind = bytes.Between(0, 5);
  const std::int64_t distinct = bytes.Between<std::int64_t>(1, 20);
  const bool any_bits = bytes.Rarely();
  tensor.ForEach([&](auto b, auto h, auto i, auto c) {
    const double x = size * random.Normal();
    const double other =
        kind == 0   ? x
        : kind == 1 ? x + size * (c == i % 7 ? 4.0 : 0.0)                     // groups
        : kind == 2 ? size * static_cast<double>((i % distinct + 3 * c) % 5)  // rows repeat
        : kind == 3 ? size * static_cast<double>(c % 3)                       // rows are equal
        : kind == 4 ? 0.0
                    : (i == distinct ? 8.0 * size : 0.1 * x);  // one stands out
    tensor.set(b, h, i, c,
               any_bits ? testing::Decoded(static_cast<std::uint32_t>(random.Below(1LL << 32)) >>
                                               (SizeOf(tensor.dtype()) == 2 ? 16 : 0),
                                           tensor.dtype())
                        : other);
  });
  const auto [batch, heads, rows, depth] = tensor.shape();
  if (batch * heads * rows * depth == 0) return;
  for (int n = bytes.Of({0, 0, 0, 1, 2, 5}); n > 0; --n) {
    const auto index = [&](std::int64_t count) {
      return bytes.Between<std::int64_t>(0, count - 1);
    };
    const std::int64_t b = index(batch);
    const std::int64_t h = index(heads);
    const std::int64_t i = index(rows);
    tensor.set(b, h, i, index(depth), bytes.AnyDouble());
  }
}

inline void FuzzMasks(Bytes& bytes, FuzzedCall& fuzzed) {
  Call& call = fuzzed.call;
  const Shape& s = call.shape;
  Random random(bytes.Any<std::uint16_t>());
  if (bytes.Rarely(1)) testing::AddRandomPadding(random, call);
  if (bytes.Rarely(2)) {
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    const auto first = [&](std::int64_t rows) {
      return bytes.Of<std::int64_t>({0, 1, 7, s.keys, s.queries, kMost - rows});
    };
    const std::int64_t first_query = first(s.queries);
    call.options.positions = Positions{first_query, first(s.keys)};
    if (bytes.Rarely()) {
      call.options.positions->first_key = bytes.Of<std::int64_t>(
          {-1, kMost - s.keys + 1, std::numeric_limits<std::int64_t>::max()});
      fuzzed.is_legal = false;
    }
  }
  const bool only_dense =
      call.options.method == Method::kLsh || call.options.method == Method::kTree;
  if (only_dense && !bytes.Rarely()) return;
  if (s.batch * s.query_heads * s.queries * s.keys > 0 && bytes.Rarely(1)) {
    testing::AddRandomMask(random, call);
  }
  call.options.is_causal = bytes.Rarely(2);
  if (bytes.Rarely(2)) {
    const auto side = [&] {
      return bytes.Of<std::int64_t>(
          {-1, 0, 1, 7, s.keys, std::numeric_limits<std::int64_t>::max()});
    };
    const std::int64_t left = side();
    call.options.window = Window{left, side()};
    if (bytes.Rarely()) {
      call.options.window->left = -2;
      fuzzed.is_legal = false;
    }
  }
  if (only_dense && (call.attn_mask || call.options.is_causal || call.options.window)) {
    fuzzed.is_legal = false;
  }
}

inline void FuzzOptions(Bytes& bytes, FuzzedCall& fuzzed) {
  Options& options = fuzzed.call.options;
  if (bytes.Rarely(2)) options.scale = bytes.Of({1.0, 0.05, 4.0, 1e-30, 1e30});
  if (options.method != Method::kLsh && bytes.Rarely(3)) options.scale = bytes.Of({0.0, -0.5});
  if (options.method == Method::kLsh) {
    options.n_hashes = bytes.Between<std::int64_t>(1, 4);
    options.cluster_size = bytes.Of<std::int64_t>({1, 2, 3, 8, 20, 32, 1000});
  }
  if (options.method == Method::kTree) {
    options.tolerance = bytes.Of({0.05, 0.2, 0.5, 0.999, 0.01, 1e-4, 1e-300, 0.0});
    if (!bytes.Rarely(2)) options.max_density = bytes.Of({0.9, 0.5, 0.2, 0.05, 1e-9, 1.0});
  }
  if (options.method == Method::kLsh || options.method == Method::kTree) {
    options.seed = bytes.Any<std::uint8_t>();
  }
  if (options.method != Method::kTree && bytes.Rarely(2)) {
    options.dropout_p = bytes.Of({0.1, 0.5, 0.9, 1e-10, 0.999999});
  }
  options.num_threads = bytes.Of({1, 1, 2, 0, 5, std::numeric_limits<int>::max()});
  if (!bytes.Rarely(3)) return;
  // Anything at all.
  fuzzed.is_legal = false;
  switch (bytes.Between(0, 8)) {
    case 0:
      options.scale = bytes.AnyDouble();
      break;
    case 1:
      options.tolerance = bytes.AnyDouble();
      break;
    case 2:
      options.max_density = bytes.AnyDouble();
      break;
    case 3:
      options.n_hashes = bytes.AnyCount();
      break;
    case 4:
      options.cluster_size = bytes.AnyCount();
      break;
    case 5:
      options.enable_gqa = !options.enable_gqa;
      break;
    case 6:
      options.num_threads = -1;
      break;
    case 7:
      options.dropout_p = bytes.AnyDouble();
      break;
    default:
      options.method = static_cast<Method>(bytes.Between(0, 5));
      options.seed = bytes.Any<std::uint64_t>();
      break;
  }
}

inline FuzzedCall FuzzCall(Bytes& bytes) {
  const Method method =
      bytes.Of({Method::kTree, Method::kTree, Method::kLsh, Method::kDense, Method::kAuto});
  FuzzedCall fuzzed = FuzzShape(bytes, method);
  FuzzElements(bytes, fuzzed.call.query);
  FuzzElements(bytes, fuzzed.call.key);
  FuzzElements(bytes, fuzzed.call.value);
  FuzzMasks(bytes, fuzzed);
  FuzzOptions(bytes, fuzzed);
  return fuzzed;
}

}  // namespace smyrf::fuzz
