// Exact: contiguous views; whether views share memory, against sets of bytes; calls whose tensors
// are slices of one buffer.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "call/overlap.h"
#include "testing/gradients.h"
#include "testing/tree_call.h"

namespace smyrf::testing {
namespace {

TEST(Contiguous, StridesAreProductsOfLaterSizes) {
  constexpr auto kView = Contiguous<const void>(nullptr, DType::kFloat16, {2, 3, 4, 5});
  static_assert(kView.rank == 4 && kView.strides == std::array<std::int64_t, 4>{60, 20, 5, 1});
  const auto vector = Contiguous<const void>(nullptr, DType::kFloat32, {7});
  EXPECT_EQ(vector.rank, 1);
  EXPECT_EQ(vector.shape[0], 7);
  EXPECT_EQ(vector.strides[0], 1);
  EXPECT_EQ(Contiguous<const void>(nullptr, DType::kFloat32, {}).rank, 0);
  const auto empty = Contiguous<const void>(nullptr, DType::kFloat32, {2, 0, 5});
  EXPECT_EQ(empty.strides, (std::array<std::int64_t, 4>{0, 5, 1, 0}));
}

TEST(Contiguous, RefusesShapesThatNoViewHas) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  const auto refuse = [](std::initializer_list<std::int64_t> shape, const std::string& given,
                         const std::string& accepted, DType dtype = DType::kFloat32) {
    float element = 0.0F;
    try {
      (void)Contiguous<void>(&element, dtype, shape);
      ADD_FAILURE() << "taken: " << given;
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_EQ(error.kind(), ErrorKind::kValue);
      EXPECT_EQ(message.rfind("Contiguous: got shape " + given, 0), 0U) << message;
      EXPECT_NE(message.find(accepted), std::string::npos) << message;
    }
  };
  refuse({1, 1, 1, 1, 1}, "(1, 1, 1, 1, 1)", "at most 4 dimensions");
  refuse({1, 2, 3, 4, 5, 6, 7, 8, 9}, "(1, 2, 3, 4, 5, 6, 7, 8, 9)", "at most 4 dimensions");
  refuse({-1}, "(-1,)", "0 or more");
  refuse({2, 3, -4, 5}, "(2, 3, -4, 5)", "0 or more");
  refuse({0, -1}, "(0, -1)", "0 or more");
  refuse({kMost, 2}, "(9223372036854775807, 2)", "any memory");
  refuse({1LL << 31, 1LL << 31, 1}, "(2147483648, 2147483648, 1)", "any memory");  // times 4 bytes
  refuse({kMost, kMost, kMost, kMost}, "(9223372036854775807", "any memory");
  refuse({0, kMost, kMost}, "(0, 9223372036854775807", "any memory");  // strides overflow
  EXPECT_NO_THROW(
      (void)Contiguous<void>(nullptr, DType::kBool, {1LL << 31, 1LL << 31}));  // one byte each
}

/// The addresses of a view's bytes.
std::set<std::intptr_t> BytesOf(const TensorView& view) {
  std::array<std::int64_t, 4> size{1, 1, 1, 1};
  std::copy_n(view.shape.begin(), view.rank, size.begin());
  std::set<std::intptr_t> bytes;
  for (std::int64_t i = 0; i < size[0]; ++i) {
    for (std::int64_t j = 0; j < size[1]; ++j) {
      for (std::int64_t k = 0; k < size[2]; ++k) {
        for (std::int64_t l = 0; l < size[3]; ++l) {
          const std::array<std::int64_t, 4> index{i, j, k, l};
          std::int64_t at = 0;
          for (std::size_t d = 0; d < static_cast<std::size_t>(view.rank); ++d) {
            at += index[d] * view.strides[d];
          }
          const auto first = reinterpret_cast<std::intptr_t>(view.data) + at * SizeOf(view.dtype);
          for (std::int64_t byte = 0; byte < SizeOf(view.dtype); ++byte) bytes.insert(first + byte);
        }
      }
    }
  }
  return bytes;
}

TensorView RandomView(Random& random, const std::byte* memory, std::int64_t most_stride) {
  TensorView view;
  view.dtype = random.Of({DType::kFloat32, DType::kFloat16, DType::kBool});
  view.rank = static_cast<int>(random.Between(1, 4));
  view.data = memory + random.Below(64) * SizeOf(view.dtype);
  std::int64_t stride = 1;
  for (std::size_t i = 0; i < static_cast<std::size_t>(view.rank); ++i) {
    view.shape[i] = random.Chance(0.03) ? 0 : random.Between(1, 4);
    // Nested as in a tensor, or any.
    view.strides[i] = random.Chance(0.5) ? stride : random.Between(-most_stride, most_stride);
    if (random.Chance(0.2)) view.strides[i] = -view.strides[i];
    stride = std::abs(view.strides[i]) * (view.shape[i] + random.Of<std::int64_t>({0, 0, 1, 3}));
  }
  return view;
}

TEST(SharedMemory, IsThatOfTheSetsOfBytes) {
  Random random(401);
  const std::vector<std::byte> memory(1);
  int shared = 0;
  int nested = 0;  // apart, though the ranges of addresses are not
  for (int n = 0; n < 4000; ++n) {
    const std::int64_t most_stride = random.Of({3, 12, 40});
    const TensorView view = RandomView(random, memory.data(), most_stride);
    const TensorView other = RandomView(random, memory.data(), most_stride);
    const std::set<std::intptr_t> bytes = BytesOf(view);
    const std::set<std::intptr_t> of_other = BytesOf(other);
    const bool some = std::any_of(bytes.begin(), bytes.end(),
                                  [&](std::intptr_t byte) { return of_other.contains(byte); });
    ASSERT_EQ(SharedMemory(view, other), some ? Sharing::kSome : Sharing::kNone) << n;
    ASSERT_EQ(SharedMemory(other, view), some ? Sharing::kSome : Sharing::kNone) << n;
    shared += some ? 1 : 0;
    if (some || bytes.empty() || of_other.empty()) continue;
    nested += *bytes.begin() < *of_other.rbegin() && *of_other.begin() < *bytes.rbegin() ? 1 : 0;
  }
  EXPECT_GT(shared, 500);
  EXPECT_GT(nested, 500);
}

TEST(SharedMemory, OfStridesTooIrregularIsUnknown) {
  const std::vector<std::byte> memory(1);
  // Some 1e12 sums of the larger strides, all even, as the distances between rows are.
  TensorView view;
  view.data = memory.data();
  view.dtype = DType::kBool;
  view.rank = 4;
  view.shape = {1000, 1000, 1000, 1000};
  view.strides = {2000006, 2000066, 2000074, 2000078};
  TensorView other = view;
  other.strides = {2000162, 2000198, 2000234, 2000242};
  other.data = memory.data() + 500000001;
  EXPECT_EQ(SharedMemory(view, other), Sharing::kNone);  // an odd distance is no sum of even ones
  view.shape = {20, 20, 20, 20};
  view.strides = {1000003, 1000033, 1000037, 1000039};
  other.shape = {20, 20, 20, 20};
  other.strides = {1000081, 1000099, 1000117, 1000121};
  other.data = memory.data() + 500007;
  EXPECT_EQ(SharedMemory(view, other), Sharing::kUnknown);
}

TEST(Counts, OfRowsThatOverflowAreRefused) {
  // Strides of 0 make any number of rows from one.
  const std::vector<float> row(8);
  const auto expect = [](const std::function<void()>& call, const std::string& name) {
    try {
      call();
      ADD_FAILURE() << "taken: " << name;
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.rfind(name + ": got ", 0), 0U) << message;
      EXPECT_NE(message.find("at most 1.09951e+12; pass fewer at a time"), std::string::npos)
          << message;
    }
  };
  const auto view = [&](std::int64_t b, std::int64_t h, std::int64_t n) {
    return TensorView{row.data(), DType::kFloat32, 4, {b, h, n, 8}, {0, 0, 0, 1}};
  };
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  constexpr std::int64_t kLarge = std::int64_t{1} << 31;
  for (const Method method : {Method::kAuto, Method::kDense, Method::kLsh, Method::kTree}) {
    Options options;
    options.method = method;
    options.enable_gqa = true;
    const auto all = [&](const Arguments& arguments, const std::string& name) {
      expect([&] { (void)plan(arguments, options); }, name);
      if (method != Method::kLsh) expect([&] { (void)estimate(arguments, options); }, name);
      expect([&] { attention(arguments, options, {}); }, name);
    };
    for (const auto& [b, h] : {std::pair{kHuge, std::int64_t{4}},
                               {std::int64_t{2}, kHuge},
                               {kLarge, kLarge},
                               {std::int64_t{0}, kHuge}}) {
      all({view(b, h, 1), view(b, h, 1), view(b, h, 1)}, "query");
      all({view(b, 1, 1), view(b, h, 1), view(b, h, 1)}, b == kHuge ? "query" : "key");
    }
    // A few heads' keys, but the plan of `lsh` lists them once a query head.
    all({view(kLarge, 1 << 8, 1), view(kLarge, 1, 1 << 9), view(kLarge, 1, 1 << 9)}, "key");
    all({view(1, kLarge, 1), view(1, 1, 1 << 20), view(1, 1, 1 << 20)}, "key");
  }
  std::vector<float> lse(1);
  MutableTensorView out{lse.data(), DType::kFloat32, 4, {kLarge, kLarge, 0, 8}, {0, 0, 0, 1}};
  const auto no_lse = Contiguous<void>(lse.data(), DType::kFloat32, {kLarge, 1, 0});
  expect([&] { merge(out, no_lse, view(kLarge, kLarge, 0), view(1, 1, 1)); }, "out");
}

TEST(Merge, TakesTheDepthsThatAttentionGives) {
  for (const std::int64_t depth :
       {std::int64_t{0}, std::int64_t{1}, kMaxHeadDimension, kMaxHeadDimension + 1}) {
    std::vector<float> out(static_cast<std::size_t>(depth + 1), 1.0F);
    const std::vector<float> other = out;
    std::vector<float> lse{0.5F};
    const std::vector<float> other_lse{0.5F};
    const auto call = [&] {
      merge(Contiguous<void>(out.data(), DType::kFloat32, {1, 1, 1, depth}),
            Contiguous<void>(lse.data(), DType::kFloat32, {1, 1, 1}),
            Contiguous<const void>(other.data(), DType::kFloat32, {1, 1, 1, depth}),
            Contiguous<const void>(other_lse.data(), DType::kFloat32, {1, 1, 1}));
    };
    if (depth <= kMaxHeadDimension) {
      call();
      EXPECT_NEAR(lse[0], 0.5 + std::log(2.0), 1e-6);
      continue;
    }
    try {
      call();
      ADD_FAILURE() << "taken: Dv " << depth;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("out: got head dimension " + std::to_string(depth)),
                std::string::npos)
          << error.what();
    }
    EXPECT_EQ(lse[0], 0.5F);
  }
}

enum class Order : std::uint8_t { kBNPHD, kBPNHD, kBPHND, kPBNHD, kBNHPD, kBHNPD };
constexpr std::array kOrders{Order::kBNPHD, Order::kBPNHD, Order::kBPHND,
                             Order::kPBNHD, Order::kBNHPD, Order::kBHNPD};

/// P tensors (B, H, N, D) in one buffer, whose dimensions lie in some order.
class Packed {
 public:
  Packed(DType dtype, std::int64_t parts, const Tensor::Index& shape, Order order)
      : dtype_(dtype), shape_(shape) {
    const auto [b, h, n, d] = shape;
    const std::int64_t p = parts;
    const std::int64_t row = d;
    switch (order) {
      case Order::kBNPHD:
        strides_ = {n * p * h * d, row, p * h * d, 1};
        part_ = h * d;
        break;
      case Order::kBPNHD:
        strides_ = {p * n * h * d, row, h * d, 1};
        part_ = n * h * d;
        break;
      case Order::kBPHND:
        strides_ = {p * h * n * d, n * d, row, 1};
        part_ = h * n * d;
        break;
      case Order::kPBNHD:
        strides_ = {n * h * d, row, h * d, 1};
        part_ = b * n * h * d;
        break;
      case Order::kBNHPD:
        strides_ = {n * h * p * d, p * d, h * p * d, 1};
        part_ = d;
        break;
      case Order::kBHNPD:
        strides_ = {h * n * p * d, n * p * d, p * d, 1};
        part_ = d;
        break;
    }
    memory_.resize(static_cast<std::size_t>(b * h * n * d * parts * SizeOf(dtype)));
  }

  MutableTensorView Part(std::int64_t part, std::int64_t shift = 0) {
    return {memory_.data() + (part * part_ + shift) * SizeOf(dtype_), dtype_, 4, shape_, strides_};
  }
  TensorView ReadPart(std::int64_t part) {
    const MutableTensorView view = Part(part);
    return {view.data, view.dtype, view.rank, view.shape, view.strides};
  }
  void Set(std::int64_t part, const Tensor& from) {
    from.ForEach([&](auto... at) {
      const std::uint32_t bits = Encoded(from.at(at...), dtype_);
      std::memcpy(Element(part, at...), &bits, static_cast<std::size_t>(SizeOf(dtype_)));
    });
  }
  bool Equals(std::int64_t part, const Tensor& other) {
    bool equal = true;
    other.ForEach([&](auto... at) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, Element(part, at...), static_cast<std::size_t>(SizeOf(dtype_)));
      equal = equal && Decoded(bits, dtype_) == other.at(at...);
    });
    return equal;
  }
  std::int64_t stride(std::size_t i) const { return strides_[i]; }
  const std::vector<std::byte>& memory() const { return memory_; }

 private:
  std::byte* Element(std::int64_t part, std::int64_t b, std::int64_t h, std::int64_t i,
                     std::int64_t c) {
    return memory_.data() +
           (part * part_ + b * strides_[0] + h * strides_[1] + i * strides_[2] + c * strides_[3]) *
               SizeOf(dtype_);
  }

  DType dtype_;
  Tensor::Index shape_;
  Tensor::Index strides_{};
  std::int64_t part_ = 0;
  std::vector<std::byte> memory_;
};

TEST(PackedCalls, OutMayLieBesideQueryKeyAndValue) {
  Random random(402);
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      const std::int64_t rows = method == Method::kTree ? 150 : 37;
      Call call({2, 3, 3, rows, rows, 7, 7}, dtype);
      call.FillNormal(random);
      call.options.method = method;
      call.options.num_threads = 2;
      if (method == Method::kTree) call.options.max_density = 0.9;
      if (method == Method::kLsh) call.options.cluster_size = 8;
      const Result expected = Attend(call);
      std::array<std::int64_t, 4> place{0, 1, 2, 3};
      for (const Order order : kOrders) {
        SCOPED_TRACE(static_cast<int>(order));
        std::next_permutation(place.begin(), place.end());
        Packed packed(dtype, 4, call.query.shape(), order);
        packed.Set(place[0], call.query);
        packed.Set(place[1], call.key);
        packed.Set(place[2], call.value);
        attention({packed.ReadPart(place[0]), packed.ReadPart(place[1]), packed.ReadPart(place[2])},
                  call.options, {packed.Part(place[3])});
        EXPECT_TRUE(packed.Equals(place[3], expected.out));
        EXPECT_TRUE(packed.Equals(place[0], call.query));
        EXPECT_TRUE(packed.Equals(place[1], call.key));
        EXPECT_TRUE(packed.Equals(place[2], call.value));
      }
    }
  }
}

TEST(PackedCalls, GradientsMayLieBesideEachOther) {
  Random random(403);
  for (const Method method : {Method::kDense, Method::kTree}) {
    const std::int64_t rows = method == Method::kTree ? 150 : 37;
    Call call({2, 2, 2, rows, rows, 5, 5});
    call.FillNormal(random);
    call.options.method = method;
    if (method == Method::kTree) call.options.max_density = 0.9;
    call.options.num_threads = 2;
    const Result result = Attend(call);
    const Upstream upstream = RandomUpstream(random, call, false);
    const GradientTensors expected = Backward(call, result, upstream);
    for (const Order order : kOrders) {
      SCOPED_TRACE(static_cast<int>(order));
      Packed packed(DType::kFloat32, 3, call.query.shape(), order);
      attention_backward(call.arguments(), call.options, result.out.view(),
                         Contiguous<const void>(result.lse.data(), DType::kFloat32, {2, 2, rows}),
                         upstream.out.view(), std::nullopt,
                         {packed.Part(2), packed.Part(0), packed.Part(1)});
      EXPECT_TRUE(packed.Equals(2, expected.query));
      EXPECT_TRUE(packed.Equals(0, expected.key));
      EXPECT_TRUE(packed.Equals(1, expected.value));
    }
  }
}

TEST(PackedCalls, OutThatTakesAnElementIsRefused) {
  for (const Order order : kOrders) {
    Packed packed(DType::kFloat32, 5, {2, 3, 6, 4}, order);
    const std::vector<std::byte> before = packed.memory();
    Options options;
    options.method = Method::kDense;
    // Query, key and value are parts 0, 1 and 2, and part 3 is free.
    const auto call = [&](const MutableTensorView& out) {
      attention({packed.ReadPart(0), packed.ReadPart(1), packed.ReadPart(2)}, options, {out});
    };
    const auto refuse = [&](const MutableTensorView& out, const std::string& name) {
      try {
        call(out);
        ADD_FAILURE() << "taken: over " << name << " in order " << static_cast<int>(order);
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("out: overlaps the memory of " + name),
                  std::string::npos)
            << error.what();
      }
    };
    refuse(packed.Part(0), "query");
    refuse(packed.Part(1), "key");
    refuse(packed.Part(2), "value");
    refuse(packed.Part(3, -1), "value");              // an element too early
    refuse(packed.Part(0, 1), "query");               // an element too late
    refuse(packed.Part(1, packed.stride(2)), "key");  // a row
    refuse(packed.Part(1, packed.stride(1)), "key");  // a head
    refuse(packed.Part(1, packed.stride(0)), "key");  // a batch entry
    MutableTensorView back = packed.Part(1);          // from the last row to the first
    back.data = static_cast<std::byte*>(back.data) + 20 * back.strides[2];
    back.strides[2] = -back.strides[2];
    refuse(back, "key");
    EXPECT_EQ(packed.memory(), before);
    EXPECT_NO_THROW(call(packed.Part(3)));
    EXPECT_NO_THROW(call(packed.Part(4)));
  }
}

}  // namespace
}  // namespace smyrf::testing
