// Hostile: every bad argument raises an Error that says what, and nothing is written before it.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "testing/call.h"
#include "testing/plan_rows.h"

namespace smyrf::testing {
namespace {

/// A sound call with outputs, to be spoiled in one place.
struct Spoiled {
  Call call;
  Tensor out;
  std::vector<float> lse;
  Statistics statistics;
  Arguments arguments;
  Options options;
  Outputs outputs;

  Spoiled() : call({2, 4, 2, 5, 7, 3, 6}), out(DType::kFloat32, {2, 4, 5, 6}), lse(40, 0.5F) {
    Random random(110);
    call.FillNormal(random);
    out.ForEach([&](auto... at) { out.set(at..., 0.25); });
    arguments = call.arguments();
    options = call.options;
    outputs.out = out.mutable_view();
    outputs.lse = Contiguous<void>(lse.data(), DType::kFloat32, {2, 4, 5});
    statistics.reason = "untouched";
    outputs.statistics = &statistics;
  }
};

using Spoil = std::function<void(Spoiled&)>;

/// The message names the argument first, and holds all of `parts`: what was given, what is
/// accepted.
void ExpectError(ErrorKind kind, const std::string& argument, const std::vector<std::string>& parts,
                 const Spoil& spoil) {
  Spoiled s;
  spoil(s);
  const std::vector<std::byte> out_before = s.out.memory();
  const std::vector<float> lse_before = s.lse;
  try {
    attention(s.arguments, s.options, s.outputs);
    ADD_FAILURE() << "no error for " << argument << ": " << (parts.empty() ? "" : parts[0]);
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.kind(), kind) << message;
    EXPECT_EQ(message.rfind(argument + ": ", 0), 0U) << message;
    for (const std::string& part : parts) {
      EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' in: " << message;
    }
  }
  EXPECT_EQ(s.out.memory(), out_before);
  EXPECT_EQ(s.lse, lse_before);
  EXPECT_EQ(s.statistics.reason, "untouched");
}

constexpr ErrorKind kValue = ErrorKind::kValue;
constexpr ErrorKind kType = ErrorKind::kType;
constexpr ErrorKind kUnsupported = ErrorKind::kUnsupported;

TEST(Errors, TheUnspoiledCallIsSound) {
  const Spoiled s;
  EXPECT_NO_THROW(attention(s.arguments, s.options, s.outputs));
  EXPECT_EQ(s.statistics.reason.find("untouched"), std::string::npos);
}

TEST(Errors, Ranks) {
  for (const int rank : {0, 1, 3, 5, 100, -1}) {
    const std::string given = "got " + std::to_string(rank) + " dimensions";
    ExpectError(kType, "query", {given, "expected 4", "BNHD"},
                [&](Spoiled& s) { s.arguments.query.rank = rank; });
    ExpectError(kType, "key", {given, "expected 4"},
                [&](Spoiled& s) { s.arguments.key.rank = rank; });
    ExpectError(kType, "value", {given, "expected 4"},
                [&](Spoiled& s) { s.arguments.value.rank = rank; });
    ExpectError(kType, "out", {given, "expected 4"},
                [&](Spoiled& s) { s.outputs.out.rank = rank; });
  }
}

TEST(Errors, Shapes) {
  ExpectError(kValue, "key", {"(3, 2, 7, 3)", "(2, heads, Nk, 3)", "query"},
              [](Spoiled& s) { s.arguments.key.shape[0] = 3; });
  ExpectError(kValue, "key", {"(2, 2, 7, 2)", "(2, heads, Nk, 3)"},
              [](Spoiled& s) { s.arguments.key.shape[3] = 2; });
  ExpectError(kValue, "value", {"(1, 2, 7, 6)", "(2, 2, 7, Dv)", "key"},
              [](Spoiled& s) { s.arguments.value.shape[0] = 1; });
  ExpectError(kValue, "value", {"(2, 1, 7, 6)", "(2, 2, 7, Dv)"},
              [](Spoiled& s) { s.arguments.value.shape[1] = 1; });
  ExpectError(kValue, "value", {"(2, 2, 6, 6)", "(2, 2, 7, Dv)"},
              [](Spoiled& s) { s.arguments.value.shape[2] = 6; });
  ExpectError(kValue, "out", {"(2, 4, 5, 5)", "(2, 4, 5, 6)", "Dv"},
              [](Spoiled& s) { s.outputs.out.shape[3] = 5; });
  ExpectError(kValue, "out", {"(2, 4, 4, 6)", "(2, 4, 5, 6)"},
              [](Spoiled& s) { s.outputs.out.shape[2] = 4; });
}

TEST(Errors, NegativeShapes) {
  for (std::size_t i = 0; i < 4; ++i) {
    SCOPED_TRACE(i);
    ExpectError(kValue, "query", {"-1"}, [&](Spoiled& s) { s.arguments.query.shape[i] = -1; });
    ExpectError(kValue, "key", {"-5"}, [&](Spoiled& s) { s.arguments.key.shape[i] = -5; });
    ExpectError(kValue, "value", {"-1"}, [&](Spoiled& s) { s.arguments.value.shape[i] = -1; });
  }
  ExpectError(kValue, "query", {"-1"}, [](Spoiled& s) {
    s.arguments.query.shape[2] = -1;  // all agree, so only the sign is wrong
    s.outputs.out.shape[2] = -1;
    s.outputs.lse->shape[2] = -1;
  });
}

TEST(Errors, HeadDimensions) {
  for (const std::int64_t depth : {0, 2049, 1 << 20}) {
    const std::string given = "got head dimension " + std::to_string(depth);
    ExpectError(kValue, "query", {given, "1 to 2048"},
                [&](Spoiled& s) { s.arguments.query.shape[3] = s.arguments.key.shape[3] = depth; });
    ExpectError(kValue, "value", {given, "1 to 2048"},
                [&](Spoiled& s) { s.arguments.value.shape[3] = s.outputs.out.shape[3] = depth; });
  }
}

TEST(Errors, Heads) {
  ExpectError(kValue, "key", {"got 2 heads", "expected 4", "enable_gqa"},
              [](Spoiled& s) { s.options.enable_gqa = false; });
  ExpectError(kValue, "query", {"got 3 heads", "multiple of the key's 2"},
              [](Spoiled& s) { s.arguments.query.shape[1] = s.outputs.out.shape[1] = 3; });
  ExpectError(kValue, "query", {"got 4 heads", "multiple of the key's 0"},
              [](Spoiled& s) { s.arguments.key.shape[1] = s.arguments.value.shape[1] = 0; });
  ExpectError(kValue, "query", {"got 1 heads", "multiple of the key's 2"},
              [](Spoiled& s) { s.arguments.query.shape[1] = s.outputs.out.shape[1] = 1; });
}

TEST(Errors, DTypes) {
  ExpectError(kType, "value", {"float32", "float16", "key", "convert"},
              [](Spoiled& s) { s.arguments.key.dtype = DType::kFloat16; });
  ExpectError(kType, "value", {"bfloat16", "float32", "key"},
              [](Spoiled& s) { s.arguments.value.dtype = DType::kBFloat16; });
  ExpectError(kType, "out", {"float16", "float32", "query"},
              [](Spoiled& s) { s.outputs.out.dtype = DType::kFloat16; });
  ExpectError(kType, "query", {"bool", "float32, float16 or bfloat16"}, [](Spoiled& s) {
    for (auto* view : {&s.arguments.query, &s.arguments.key, &s.arguments.value}) {
      view->dtype = DType::kBool;
    }
  });
  ExpectError(kType, "query", {"number 9"},
              [](Spoiled& s) { s.arguments.query.dtype = std::bit_cast<DType>(std::uint8_t{9}); });
}

TEST(Errors, Memory) {
  const auto odd = [](const void* data) {
    return static_cast<const void*>(static_cast<const std::byte*>(data) + 1);
  };
  ExpectError(kValue, "query", {"null pointer"},
              [](Spoiled& s) { s.arguments.query.data = nullptr; });
  ExpectError(kValue, "value", {"null pointer"},
              [](Spoiled& s) { s.arguments.value.data = nullptr; });
  ExpectError(kValue, "out", {"null pointer"}, [](Spoiled& s) { s.outputs.out.data = nullptr; });
  ExpectError(kValue, "lse", {"null pointer"}, [](Spoiled& s) { s.outputs.lse->data = nullptr; });
  ExpectError(kValue, "query", {"aligned", "4 bytes", "copy"},
              [&](Spoiled& s) { s.arguments.query.data = odd(s.arguments.query.data); });
  ExpectError(kValue, "key", {"aligned", "4 bytes", "copy"},
              [&](Spoiled& s) { s.arguments.key.data = odd(s.arguments.key.data); });
  ExpectError(kValue, "out", {"aligned", "4 bytes"}, [&](Spoiled& s) {
    s.outputs.out.data = static_cast<std::byte*>(s.outputs.out.data) + 2;
  });
  ExpectError(kValue, "query", {"last dimension", "contiguous", "stride 2", "copy"},
              [](Spoiled& s) { s.arguments.query.strides[3] = 2; });
  ExpectError(kValue, "value", {"last dimension", "contiguous", "stride -1"},
              [](Spoiled& s) { s.arguments.value.strides[3] = -1; });
  ExpectError(kValue, "out", {"last dimension", "contiguous", "stride 0"},
              [](Spoiled& s) { s.outputs.out.strides[3] = 0; });
  for (const std::int64_t stride : {1, 5, -5}) {  // rows that overlap in part
    ExpectError(kValue, "out", {"dimension 2", "stride " + std::to_string(stride), "overlap"},
                [&](Spoiled& s) { s.outputs.out.strides[2] = stride; });
  }
  ExpectError(kValue, "out", {"dimension 1", "stride 29", "overlap"},
              [](Spoiled& s) { s.outputs.out.strides[1] = 29; });
  for (const std::size_t i : {0U, 1U, 2U}) {
    ExpectError(kValue, "out", {"dimension " + std::to_string(i), "stride 0", "memory of its own"},
                [&](Spoiled& s) { s.outputs.out.strides[i] = 0; });
  }
}

TEST(Errors, StridesPastAnyMemory) {
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  constexpr auto kLeast = std::numeric_limits<std::int64_t>::min();
  for (const std::int64_t stride : {kMost, kLeast, std::int64_t{1} << 60}) {
    for (const std::size_t i : {0U, 1U, 2U}) {
      ExpectError(kValue, "query", {"strides", "any memory"},
                  [&](Spoiled& s) { s.arguments.query.strides[i] = stride; });
      ExpectError(kValue, "out", {"strides", "any memory"},
                  [&](Spoiled& s) { s.outputs.out.strides[i] = stride; });
    }
    // The stride of a single index means nothing.
    Random random(91);
    Call call({1, 1, 1, 1, 3, 4, 4});
    call.FillNormal(random);
    Arguments arguments = call.arguments();
    Tensor out(DType::kFloat32, {1, 1, 1, 4});
    Outputs outputs{out.mutable_view()};
    for (const std::size_t i : {0U, 1U, 2U}) {
      arguments.query.strides[i] = stride;
      outputs.out.strides[i] = stride;
    }
    attention(arguments, call.options, outputs);
    EXPECT_EQ(out.memory(), Attend(call).out.memory());
  }
}

TEST(Errors, OutputsThatOverlap) {
  static std::vector<float> shared(1000, 0.25F);
  ExpectError(kValue, "out", {"overlaps", "query"}, [](Spoiled& s) {
    s.arguments.query.data = shared.data();
    s.outputs.out.data = shared.data() + 119;  // the last element of query
  });
  ExpectError(kValue, "out", {"overlaps", "key"}, [](Spoiled& s) {
    s.arguments.key.data = shared.data() + 239;
    s.outputs.out.data = shared.data();
  });
  ExpectError(kValue, "out", {"overlaps", "value"}, [](Spoiled& s) {
    s.arguments.value.data = shared.data();
    s.outputs.out.data = shared.data() + 100;
  });
  ExpectError(kValue, "out", {"overlaps", "attn_mask"}, [](Spoiled& s) {
    s.arguments.attn_mask = Contiguous<const void>(shared.data(), DType::kFloat32, {5, 7});
    s.outputs.out.data = shared.data() + 34;
  });
  ExpectError(kValue, "lse", {"overlaps", "out"}, [](Spoiled& s) {
    s.outputs.out.data = shared.data();
    s.outputs.lse->data = shared.data() + 239;
  });
  ExpectError(kValue, "lse", {"overlaps", "query"}, [](Spoiled& s) {
    s.arguments.query.data = shared.data();
    s.outputs.lse->data = shared.data() + 1;
  });
  // Negative strides reach below the pointer.
  ExpectError(kValue, "out", {"overlaps", "key"}, [](Spoiled& s) {
    s.arguments.key.data = shared.data() + 500;
    s.arguments.key.strides = {-42, -21, -3, 1};
    s.outputs.out.data = shared.data() + 200;  // up to 439; the key reaches down to 437
  });
  // Side by side is fine.
  Spoiled s;
  s.arguments.query.data = shared.data();
  s.outputs.out.data = shared.data() + 120;
  s.outputs.lse = Contiguous<void>(shared.data() + 360, DType::kFloat32, {2, 4, 5});
  EXPECT_NO_THROW(attention(s.arguments, s.options, s.outputs));
}

TEST(Errors, Lse) {
  const std::vector<std::string> expected{"contiguous float32", "(2, 4, 5)", "Nq"};
  ExpectError(kValue, "lse", expected, [](Spoiled& s) { s.outputs.lse->dtype = DType::kFloat16; });
  ExpectError(kValue, "lse", expected, [](Spoiled& s) { s.outputs.lse->shape[2] = 4; });
  ExpectError(kValue, "lse", expected, [](Spoiled& s) { s.outputs.lse->strides[1] = 6; });
  for (const int rank : {2, 4, 100}) {
    ExpectError(kValue, "lse", expected, [&](Spoiled& s) { s.outputs.lse->rank = rank; });
  }
}

TEST(Errors, PaddingMasks) {
  static const std::vector<std::uint8_t> ones(64, 1);
  const auto mask = [](std::initializer_list<std::int64_t> shape, DType dtype = DType::kBool) {
    return Contiguous<const void>(ones.data(), dtype, shape);
  };
  ExpectError(kValue, "key_padding_mask", {"(2, 6)", "(2, 7)", "(batch, Nk)"},
              [&](Spoiled& s) { s.arguments.key_padding_mask = mask({2, 6}); });
  ExpectError(kValue, "key_padding_mask", {"(1, 7)", "(2, 7)"},
              [&](Spoiled& s) { s.arguments.key_padding_mask = mask({1, 7}); });
  ExpectError(kValue, "key_padding_mask", {"(7,)", "(2, 7)"},
              [&](Spoiled& s) { s.arguments.key_padding_mask = mask({7}); });
  ExpectError(kType, "key_padding_mask", {"float32", "bool", "True"},
              [&](Spoiled& s) { s.arguments.key_padding_mask = mask({2, 7}, DType::kFloat32); });
  ExpectError(kValue, "query_padding_mask", {"(2, 7)", "(2, 5)", "(batch, Nq)"},
              [&](Spoiled& s) { s.arguments.query_padding_mask = mask({2, 7}); });
  ExpectError(kType, "query_padding_mask", {"float16", "bool"},
              [&](Spoiled& s) { s.arguments.query_padding_mask = mask({2, 5}, DType::kFloat16); });
  ExpectError(kValue, "key_padding_mask", {"null pointer"}, [&](Spoiled& s) {
    s.arguments.key_padding_mask = mask({2, 7});
    s.arguments.key_padding_mask->data = nullptr;
  });
  for (const int rank : {0, 3, 100}) {
    ExpectError(kValue, "key_padding_mask", {"(2, 7)"}, [&](Spoiled& s) {
      s.arguments.key_padding_mask = mask({2, 7});
      s.arguments.key_padding_mask->rank = rank;
    });
  }
}

TEST(Errors, AttentionMasks) {
  static const std::vector<float> zeros(280, 0.0F);
  const auto mask = [](std::initializer_list<std::int64_t> shape) {
    return Contiguous<const void>(zeros.data(), DType::kFloat32, shape);
  };
  const std::vector<std::vector<std::int64_t>> wrong{
      {6}, {4, 7}, {5, 6}, {3, 5, 7}, {3, 4, 5, 7}, {2, 2, 5, 7}, {0, 4, 5, 7}};
  for (const auto& shape : wrong) {
    ExpectError(kValue, "attn_mask", {"broadcastable to (2, 4, 5, 7)", "Nq, Nk"}, [&](Spoiled& s) {
      s.arguments.attn_mask = mask({1, 1, 1, 1});
      s.arguments.attn_mask->rank = static_cast<int>(shape.size());
      std::copy(shape.begin(), shape.end(), s.arguments.attn_mask->shape.begin());
    });
  }
  for (const int rank : {0, 5, 100, -3}) {
    ExpectError(kType, "attn_mask", {"got " + std::to_string(rank) + " dimensions", "1 to 4"},
                [&](Spoiled& s) {
                  s.arguments.attn_mask = mask({5, 7});
                  s.arguments.attn_mask->rank = rank;
                });
  }
  ExpectError(kValue, "attn_mask", {"null pointer"}, [&](Spoiled& s) {
    s.arguments.attn_mask = mask({5, 7});
    s.arguments.attn_mask->data = nullptr;
  });
  ExpectError(kValue, "attn_mask", {"aligned"}, [&](Spoiled& s) {
    s.arguments.attn_mask = mask({5, 6});
    s.arguments.attn_mask->shape[1] = 7;
    s.arguments.attn_mask->data = reinterpret_cast<const std::byte*>(zeros.data()) + 1;
  });
}

TEST(Errors, Options) {
  for (const double scale : {kNaN, kInfinity, -kInfinity, 1e39}) {
    ExpectError(kValue, "scale", {"got ", "finite"}, [&](Spoiled& s) { s.options.scale = scale; });
  }
  ExpectError(kValue, "window", {"left = -2", "-1"},
              [](Spoiled& s) { s.options.window = Window{-2, 0}; });
  ExpectError(kValue, "window", {"right = -9", "-1"},
              [](Spoiled& s) { s.options.window = Window{0, -9}; });
  ExpectError(kValue, "method", {"number 4", "auto, dense, lsh and tree"},
              [](Spoiled& s) { s.options.method = std::bit_cast<Method>(std::uint8_t{4}); });
  ExpectError(kValue, "num_threads", {"got -1", "1 and more"},
              [](Spoiled& s) { s.options.num_threads = -1; });
}

TEST(Errors, DialsOfAnotherMethod) {
  const auto expect = [](Method method, const std::string& dial,
                         const std::vector<std::string>& parts,
                         const std::function<void(Options&)>& set) {
    ExpectError(kValue, dial, parts, [&](Spoiled& s) {
      s.options.method = method;
      set(s.options);
    });
  };
  for (const Method method : {Method::kAuto, Method::kDense}) {
    const std::string name = method == Method::kAuto ? "auto" : "dense";
    const std::vector parts{"dial of method lsh, but the method is " + name,
                            std::string("method='lsh'")};
    expect(method, "n_hashes", parts, [](Options& options) { options.n_hashes = 8; });
    expect(method, "cluster_size", parts, [](Options& options) { options.cluster_size = 32; });
  }
  expect(Method::kDense, "seed", {"dial of methods lsh and tree", "'lsh' or method='tree'"},
         [](Options& options) { options.seed = 1; });
  const std::vector<std::string> tree{"dial of method tree", "method='tree'"};
  expect(Method::kDense, "tolerance", tree, [](Options& options) { options.tolerance = 0.1; });
  // What auto takes may not hold the cap.
  for (const Method method : {Method::kAuto, Method::kDense, Method::kLsh}) {
    expect(method, "max_density", tree, [](Options& options) { options.max_density = 0.5; });
  }
}

TEST(Errors, DialsOutOfRange) {
  for (const Method method : {Method::kDense, Method::kLsh}) {
    for (const std::int64_t value :
         {std::int64_t{0}, std::int64_t{-1}, std::numeric_limits<std::int64_t>::min()}) {
      const std::string given = "got " + std::to_string(value);
      ExpectError(kValue, "n_hashes", {given}, [&](Spoiled& s) {
        s.options.method = method;
        s.options.n_hashes = value;
      });
      ExpectError(kValue, "cluster_size", {given, "from 1"}, [&](Spoiled& s) {
        s.options.method = method;
        s.options.cluster_size = value;
      });
    }
  }
  ExpectError(kValue, "cluster_size", {"got 9223372036854775807", "2147483647"}, [](Spoiled& s) {
    s.options.method = Method::kLsh;
    s.options.cluster_size = std::numeric_limits<std::int64_t>::max();
  });
  for (const std::int64_t value : {std::int64_t{4097}, std::numeric_limits<std::int64_t>::max()}) {
    ExpectError(kValue, "n_hashes", {"got " + std::to_string(value), "4096"}, [&](Spoiled& s) {
      s.options.method = Method::kLsh;
      s.options.n_hashes = value;
    });
  }
}

TEST(Errors, WhatLshDoesNotTake) {
  static const std::vector<float> zeros(35, 0.0F);
  const auto expect = [](const std::string& argument, const Spoil& set) {
    ExpectError(kUnsupported, argument, {"lsh", "method='dense'"}, [&](Spoiled& s) {
      s.options.method = Method::kLsh;
      set(s);
    });
  };
  expect("is_causal", [](Spoiled& s) { s.options.is_causal = true; });
  expect("window", [](Spoiled& s) { s.options.window = Window{3, 3}; });
  expect("attn_mask", [](Spoiled& s) {
    s.arguments.attn_mask = Contiguous<const void>(zeros.data(), DType::kFloat32, {5, 7});
  });
  for (const double scale : {0.0, -1.0}) {
    ExpectError(kValue, "scale", {"above 0", "method='dense'"}, [&](Spoiled& s) {
      s.options.method = Method::kLsh;
      s.options.scale = scale;
    });
  }
}

TEST(Errors, PlanAndReferenceRaiseThemToo) {
  Spoiled s;
  s.arguments.key.shape[3] = 2;
  EXPECT_THROW((void)plan(s.arguments, s.options), Error);
  std::vector<double> out(240, 0.5);
  const std::vector<double> before = out;
  EXPECT_THROW(reference(s.arguments, s.options, out.data(), nullptr), Error);
  EXPECT_EQ(out, before);
  // A plan looks at neither value nor attn_mask.
  Spoiled t;
  t.arguments.value = {};
  EXPECT_NO_THROW((void)plan(t.arguments, t.options));
}

TEST(Limits, HugeDialsAreSound) {
  Random random(111);
  Call call({1, 1, 1, 6, 9, 3, 4});
  call.FillNormal(random);
  call.options.method = Method::kLsh;
  call.options.cluster_size = std::numeric_limits<std::int32_t>::max();
  call.options.seed = std::numeric_limits<std::uint64_t>::max();
  call.options.n_hashes = kMaxHashes;
  call.options.num_threads = std::numeric_limits<int>::max();
  EXPECT_TRUE(Attend(call).statistics.heads[0].dense);
  call.options.cluster_size = 1;
  EXPECT_EQ(PlanOf(call).head(kMaxHashes - 1, 0, 0).blocks.size(), 6U);
  (void)Attend(call);
  call.options = {};
  call.options.window =
      Window{std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::max()};
  const Result wide = Attend(call);
  call.options.window.reset();
  EXPECT_TRUE(Attend(call).SameBits(wide));
}

TEST(Limits, NothingToDo) {
  const std::vector<Shape> shapes{{0, 2, 2, 3, 4, 5, 6}, {2, 0, 0, 3, 4, 5, 6},
                                  {2, 0, 2, 3, 4, 5, 6}, {2, 0, 2, 300, 400, 5, 6},
                                  {2, 2, 2, 0, 4, 5, 6}, {2, 2, 2, 0, 0, 5, 6}};
  for (const Shape& shape : shapes) {
    for (const Method method : {Method::kAuto, Method::kDense, Method::kLsh, Method::kTree}) {
      Call call(shape);
      call.options.method = method;
      call.options.enable_gqa = true;
      const Result result = Attend(call);
      EXPECT_TRUE(result.lse.empty());
      EXPECT_EQ(result.statistics.heads.size(),
                static_cast<std::size_t>(shape.batch * shape.query_heads));
      // Empty tensors may have no memory at all.
      attention(call.arguments(), call.options,
                {Contiguous<void>(nullptr, DType::kFloat32,
                                  {shape.batch, shape.query_heads, shape.queries, 6})});
    }
  }
}

TEST(Limits, NoKeys) {
  for (const std::int64_t queries : {1, 70}) {
    for (const Method method : {Method::kAuto, Method::kDense, Method::kLsh}) {
      for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
        Call call({2, 4, 2, queries, 0, 5, 6}, dtype);
        Random random(112);
        call.query.FillNormal(random);
        call.options.method = method;
        const Result result = Attend(call);
        for (const float lse : result.lse) EXPECT_EQ(lse, -kInfinity);
        result.out.ForEach([&](auto... at) { ASSERT_EQ(result.out.at(at...), 0.0); });
        const Exact exact = RunReference(call);
        for (const double lse : exact.lse) EXPECT_EQ(lse, -kInfinity);
        for (const double value : exact.out) EXPECT_EQ(value, 0.0);
      }
    }
  }
}

}  // namespace
}  // namespace smyrf::testing
