// Exact: rows that see nothing, and attn_mask values at the edge of what floats hold.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>

#include "testing/bounds.h"
#include "testing/instruction_sets.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

constexpr double kLowest = std::numeric_limits<float>::lowest();

Call SmallCall(Random& random, std::int64_t queries = 9, std::int64_t keys = 12) {
  Call call({2, 2, 2, queries, keys, 8, 5});
  call.FillNormal(random);
  return call;
}

/// The call's mask of full shape; made where there is none.
Tensor& MaskOf(Call& call, DType dtype = DType::kFloat32) {
  const Shape& s = call.shape;
  if (!call.attn_mask) {
    call.attn_mask = Tensor(dtype, {s.batch, s.query_heads, s.queries, s.keys});
  }
  return *call.attn_mask;
}

void AddMask(Call& call, DType dtype, double value) {
  Tensor& mask = MaskOf(call, dtype);
  mask.ForEach([&](auto... at) { mask.set(at..., value); });
}

/// Rows (b, h, i) of which `empty` holds are exactly 0 and -inf, all others are finite.
void ExpectEmpty(const Call& call,
                 const std::function<bool(std::int64_t, std::int64_t, std::int64_t)>& empty) {
  ForEachInstructionSet([&] {
    const Result result = Attend(call);
    call.ForEachRow([&](auto b, auto h, auto i) {
      ASSERT_EQ(call.SeesNothing(b, h, i), empty(b, h, i));
      const float lse = result.lse[call.Row(b, h, i)];
      for (std::int64_t c = 0; c < call.shape.value_depth; ++c) {
        const double value = result.out.at(b, h, i, c);
        ASSERT_TRUE(empty(b, h, i) ? value == 0.0 : value != 0.0 && std::isfinite(value));
      }
      ASSERT_TRUE(empty(b, h, i) ? lse == -kInfinity : std::isfinite(lse));
    });
    ASSERT_TRUE(Close(call, result, RunReference(call), 8.0));
  });
}

TEST(EmptyRows, ByABooleanMask) {
  Random random(80);
  Call call = SmallCall(random);
  AddMask(call, DType::kBool, 1.0);
  MaskOf(call).FillRow(1, 0, 3, 0.0);
  ExpectEmpty(call, [](auto b, auto h, auto i) { return b == 1 && h == 0 && i == 3; });
}

TEST(EmptyRows, ByAnAdditiveMask) {
  Random random(81);
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    Call call = SmallCall(random);
    AddMask(call, dtype, 0.5);
    MaskOf(call).FillRow(0, 1, 8, -kInfinity);
    ExpectEmpty(call, [](auto b, auto h, auto i) { return b == 0 && h == 1 && i == 8; });
  }
}

TEST(EmptyRows, ByCausalityWithMoreQueriesThanKeys) {
  Random random(82);
  Call call = SmallCall(random, 70, 10);
  call.options.is_causal = true;
  ExpectEmpty(call, [](auto, auto, auto i) { return i < 60; });
}

TEST(EmptyRows, ByAWindow) {
  Random random(83);
  Call call = SmallCall(random, 70, 10);
  call.options.window = Window{2, 1};  // query i sees keys from i - 62 to i - 59
  ExpectEmpty(call, [](auto, auto, auto i) { return i < 59; });
}

TEST(EmptyRows, ByPaddedKeysOrQueries) {
  Random random(84);
  for (const Method method : {Method::kDense, Method::kLsh}) {
    Call keys = SmallCall(random, 20, 40);
    keys.options.method = method;
    if (method == Method::kLsh) keys.options.cluster_size = 4;
    keys.key_padding_mask = Tensor(DType::kBool, {1, 1, 2, 40});
    keys.key_padding_mask->FillRow(0, 0, 0, 0.0);
    keys.key_padding_mask->FillRow(0, 0, 1, 1.0);
    ExpectEmpty(keys, [](auto b, auto, auto) { return b == 0; });

    Call queries = SmallCall(random, 20, 40);
    queries.options = keys.options;
    queries.query_padding_mask = Tensor(DType::kBool, {1, 1, 2, 20});
    queries.query_padding_mask->ForEach([&](auto, auto, auto b, auto i) {
      queries.query_padding_mask->set(0, 0, b, i, b == 0 && i % 3 == 0 ? 0.0 : 1.0);
    });
    ExpectEmpty(queries, [](auto b, auto, auto i) { return b == 0 && i % 3 == 0; });
  }
}

TEST(EmptyRows, OfFewQueriesWhoseKeysAreSplit) {
  Random random(88);
  Call padded = SmallCall(random, 3, 2500);
  padded.key_padding_mask = Tensor(DType::kBool, {1, 1, 2, 2500});
  padded.key_padding_mask->FillRow(0, 0, 0, 1.0);
  padded.key_padding_mask->FillRow(0, 0, 1, 0.0);
  ExpectEmpty(padded, [](auto b, auto, auto) { return b == 1; });

  for (const DType dtype : {DType::kBool, DType::kFloat32}) {
    Call masked = SmallCall(random, 3, 2500);
    AddMask(masked, dtype, dtype == DType::kBool ? 1.0 : 0.0);
    MaskOf(masked).FillRow(0, 0, 1, dtype == DType::kBool ? 0.0 : -kInfinity);
    ExpectEmpty(masked, [](auto b, auto h, auto i) { return b == 0 && h == 0 && i == 1; });
  }
}

TEST(EmptyRows, ByMasksThatOnlyTogetherForbidAll) {
  Random random(85);
  Call call = SmallCall(random);
  AddMask(call, DType::kBool, 1.0);
  for (std::int64_t j = 0; j < 6; ++j) MaskOf(call).set(0, 0, 4, j, 0.0);
  call.options.is_causal = true;  // query 4 sees keys up to 7
  call.key_padding_mask = Tensor(DType::kBool, {1, 1, 2, 12});
  call.key_padding_mask->ForEach([&](auto, auto, auto b, auto j) {
    call.key_padding_mask->set(0, 0, b, j, j == 6 || j == 7 ? 0.0 : 1.0);
  });
  ExpectEmpty(call, [](auto b, auto h, auto i) { return b == 0 && h == 0 && i == 4; });
}

TEST(AdditiveMask, LowestOnAWholeRowIsAUniformMean) {
  // As in PyTorch: the mask's number swallows the logits, and equal logits give equal weights.
  Random random(86);
  for (const std::int64_t queries : {1, 9}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      Call call = SmallCall(random, queries, 300);
      AddMask(call, dtype, 0.0);
      const double lowest = dtype == DType::kFloat32 ? kLowest : -0x1.FEp127;
      MaskOf(call).FillRow(0, 0, 0, lowest);
      ForEachInstructionSet([&] {
        const Result result = Attend(call);
        for (std::int64_t c = 0; c < 5; ++c) {
          double mean = 0.0;
          for (std::int64_t j = 0; j < 300; ++j) mean += call.value.at(0, 0, j, c) / 300.0;
          // Equal weights are exact; 300 products and sums of at most 4, and one division.
          ASSERT_NEAR(result.out.at(0, 0, 0, c), mean, 4.0 * Growth(600.0) * 0x1p-24);
        }
        // Logits are kept in base 2, where nothing below -2.36e38 nats can be told apart: such a
        // row has the lowest float32, which bfloat16's own lowest misses by 0.4 %.
        ASSERT_EQ(result.lse[0], kLowest);
        ASSERT_NEAR(result.lse[0] / lowest, 1.0, 0.004);
        MaskOf(call).FillRow(0, 0, 0, 0.0);  // all other rows are as without a mask
        const Result clean = Attend(call);
        MaskOf(call).FillRow(0, 0, 0, lowest);
        call.ForEachRow([&](auto b, auto h, auto i) {
          if (b + h + i == 0) return;
          for (std::int64_t c = 0; c < 5; ++c) {
            ASSERT_EQ(result.out.at(b, h, i, c), clean.out.at(b, h, i, c));
          }
        });
      });
    }
  }
}

TEST(AdditiveMask, LowestNextToZeroHides) {
  Random random(87);
  for (const std::int64_t queries : {1, 9, 40}) {
    Call call = SmallCall(random, queries, 150);
    AddMask(call, DType::kFloat32, 0.0);
    Call hidden = call;
    MaskOf(hidden).ForEach([&](auto... at) {
      if (!random.Chance(0.5)) return;
      MaskOf(hidden).set(at..., kLowest);
      MaskOf(call).set(at..., -kInfinity);
    });
    const Exact exact = RunReference(call);
    ForEachInstructionSet([&] { ASSERT_TRUE(Close(call, Attend(hidden), exact, 0.0)); });
  }
}

TEST(AdditiveMask, LowestWhereOthersAreMinusInfinityIsAUniformMeanOfTheRest) {
  Random random(88);
  Call call = SmallCall(random, 5, 140);
  AddMask(call, DType::kFloat32, -kInfinity);
  MaskOf(call).ForEach([&](auto b, auto h, auto i, auto j) {
    if (j == 3 || j == 133) MaskOf(call).set(b, h, i, j, kLowest);
  });
  ForEachInstructionSet([&] {
    const Result result = Attend(call);
    result.out.ForEach([&](auto b, auto h, auto i, auto c) {
      const double mean = (call.value.at(b, h, 3, c) + call.value.at(b, h, 133, c)) / 2.0;
      ASSERT_NEAR(result.out.at(b, h, i, c), mean, 1e-6);
    });
  });
}

TEST(AdditiveMask, LargeNumbersOfPaddingConventionsHide) {
  Random random(89);
  for (const double value : {-1e4, -1e9, -65504.0, -1e30}) {
    Call call = SmallCall(random, 20, 30);
    AddMask(call, DType::kFloat32, 0.0);
    for (std::int64_t j = 20; j < 30; ++j) {
      for (std::int64_t i = 0; i < 20; ++i) MaskOf(call).set(1, 1, i, j, value);
    }
    Call cut = call;
    MaskOf(cut).ForEach([&](auto... at) {
      if (MaskOf(call).at(at...) != 0.0) MaskOf(cut).set(at..., -kInfinity);
    });
    EXPECT_TRUE(Close(cut, Attend(call), RunReference(cut), 0.0)) << value;
  }
}

TEST(AdditiveMask, NaNAndPlusInfinityMakeTheirRowNaN) {
  Random random(90);
  for (const double value : {kNaN, kInfinity}) {
    for (const std::int64_t queries : {2, 9}) {
      for (const std::int64_t at : {0, 150, 299}) {
        SCOPED_TRACE(::testing::Message() << value << " " << queries << " " << at);
        Call call = SmallCall(random, queries, 300);
        AddMask(call, DType::kFloat32, 0.0);
        const Exact clean = RunReference(call);
        MaskOf(call).set(0, 1, 1, at, value);
        ForEachInstructionSet([&] {
          const Result result = Attend(call);
          result.out.ForEach([&](auto b, auto h, auto i, auto c) {
            const bool hit = b == 0 && h == 1 && i == 1;
            const std::size_t row = call.Row(b, h, i);
            ASSERT_EQ(std::isnan(result.out.at(b, h, i, c)), hit);
            ASSERT_EQ(std::isnan(result.lse[row]), hit);
            if (!hit) {
              ASSERT_NEAR(result.lse[row], clean.lse[row], 1e-5);
            }
          });
        });
      }
    }
  }
}

TEST(AdditiveMask, NaNUnderCausalityIsNotSeen) {
  // The pair is forbidden by position, so what the mask adds to it does not matter.
  Random random(91);
  for (const std::int64_t queries : {3, 9}) {
    Call call = SmallCall(random, queries, 12);
    AddMask(call, DType::kFloat32, 0.25);
    call.options.is_causal = true;
    const Result clean = Attend(call);
    MaskOf(call).set(0, 0, 0, 11, kNaN);
    MaskOf(call).set(1, 1, 1, 11, kInfinity);
    ForEachInstructionSet([&] { ASSERT_TRUE(Close(call, Attend(call), RunReference(call), 0.0)); });
    EXPECT_TRUE(Attend(call).SameBits(clean));
  }
}

TEST(BooleanMask, AnyByteButZeroIsTrue) {
  Random random(92);
  Call call = SmallCall(random);
  AddMask(call, DType::kBool, 1.0);
  MaskOf(call).FillRow(0, 0, 2, 0.0);
  const Result expected = Attend(call);
  auto* bytes = static_cast<std::uint8_t*>(MaskOf(call).mutable_view().data);
  for (std::size_t n = 0; n < MaskOf(call).memory().size(); ++n) {
    if (bytes[n] != 0) bytes[n] = static_cast<std::uint8_t>(random.Between(1, 255));
  }
  EXPECT_TRUE(Attend(call).SameBits(expected));
}

}  // namespace
}  // namespace smyrf::testing
