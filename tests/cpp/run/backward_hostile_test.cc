// Hostile: every bad argument of attention_backward raises an Error that says what, before anything
// is written; NaN and infinities where they may be, and where they may not.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "testing/gradients.h"
#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

constexpr float kFloatNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kFloatInfinity = std::numeric_limits<float>::infinity();

/// A sound call with its arguments, to be spoiled in one place.
struct Spoiled {
  Call call;
  Upstream upstream;
  Result result;
  GradientTensors tensors;
  Arguments arguments;
  Options options;
  TensorView out, lse, grad_out;
  std::optional<TensorView> grad_lse;
  Gradients gradients;

  static Call SoundCall() {
    Random random(330);
    Call call({2, 4, 2, 5, 7, 3, 6});
    call.FillNormal(random);
    return call;
  }
  static Upstream SoundUpstream(const Call& call) {
    Random random(331);
    return RandomUpstream(random, call, true);
  }
  Spoiled()
      : call(SoundCall()),
        upstream(SoundUpstream(call)),
        result(Attend(call)),
        tensors(call),
        arguments(call.arguments()),
        options(call.options),
        out(result.out.view()),
        lse(Contiguous<const void>(result.lse.data(), DType::kFloat32, {2, 4, 5})),
        grad_out(upstream.out.view()),
        grad_lse(upstream.lse_view(call)),
        gradients(tensors.views()) {}

  void Run() const {
    attention_backward(arguments, options, out, lse, grad_out, grad_lse, gradients);
  }
};

void ExpectError(ErrorKind kind, const std::string& argument, const std::vector<std::string>& parts,
                 const std::function<void(Spoiled&)>& spoil) {
  Spoiled s;
  spoil(s);
  const std::vector<std::byte> before[] = {s.tensors.query.memory(), s.tensors.key.memory(),
                                           s.tensors.value.memory()};
  try {
    s.Run();
    ADD_FAILURE() << "no error for " << argument << ": " << (parts.empty() ? "" : parts[0]);
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.kind(), kind) << message;
    EXPECT_EQ(message.rfind(argument + ": ", 0), 0U) << message;
    for (const std::string& part : parts) {
      EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' in: " << message;
    }
  }
  EXPECT_EQ(s.tensors.query.memory(), before[0]);
  EXPECT_EQ(s.tensors.key.memory(), before[1]);
  EXPECT_EQ(s.tensors.value.memory(), before[2]);
}

constexpr ErrorKind kValue = ErrorKind::kValue;
constexpr ErrorKind kType = ErrorKind::kType;

TEST(BackwardErrors, TheUnspoiledCallIsSound) {
  const Spoiled s;
  EXPECT_NO_THROW(s.Run());
  EXPECT_FALSE(std::isnan(s.tensors.value.at(1, 1, 6, 5)));
}

TEST(BackwardErrors, RanksShapesAndDTypes) {
  ExpectError(kType, "out", {"got 3 dimensions"}, [](Spoiled& s) { s.out.rank = 3; });
  ExpectError(kType, "grad_out", {"got 5 dimensions"}, [](Spoiled& s) { s.grad_out.rank = 5; });
  ExpectError(kType, "grad_key", {"got 0 dimensions"},
              [](Spoiled& s) { s.gradients.key.rank = 0; });
  ExpectError(kValue, "out", {"(2, 4, 5, 5)", "(2, 4, 5, 6)", "Dv"},
              [](Spoiled& s) { s.out.shape[3] = 5; });
  ExpectError(kValue, "grad_out", {"(2, 4, 4, 6)", "(2, 4, 5, 6)"},
              [](Spoiled& s) { s.grad_out.shape[2] = 4; });
  ExpectError(kValue, "grad_query", {"(2, 4, 5, 2)", "(2, 4, 5, 3)", "Nq, D"},
              [](Spoiled& s) { s.gradients.query.shape[3] = 2; });
  ExpectError(kValue, "grad_key", {"(2, 1, 7, 3)", "(2, 2, 7, 3)", "key heads"},
              [](Spoiled& s) { s.gradients.key.shape[1] = 1; });
  ExpectError(kValue, "grad_value", {"(2, 2, 7, 3)", "(2, 2, 7, 6)", "Nk, Dv"},
              [](Spoiled& s) { s.gradients.value.shape[3] = 3; });
  ExpectError(kType, "out", {"float16", "float32", "query"},
              [](Spoiled& s) { s.out.dtype = DType::kFloat16; });
  ExpectError(kType, "grad_out", {"bfloat16", "float32"},
              [](Spoiled& s) { s.grad_out.dtype = DType::kBFloat16; });
  ExpectError(kType, "grad_value", {"float16", "float32"},
              [](Spoiled& s) { s.gradients.value.dtype = DType::kFloat16; });
  ExpectError(kValue, "lse", {"float16", "contiguous float32 (2, 4, 5)"},
              [](Spoiled& s) { s.lse.dtype = DType::kFloat16; });
  ExpectError(kValue, "lse", {"(2, 4, 4)", "(2, 4, 5)"}, [](Spoiled& s) { s.lse.shape[2] = 4; });
  ExpectError(kValue, "lse", {"contiguous"}, [](Spoiled& s) { s.lse.strides[1] = 6; });
  ExpectError(kValue, "grad_lse", {"contiguous float32 (2, 4, 5)"},
              [](Spoiled& s) { s.grad_lse->strides[2] = 0; });
  ExpectError(kValue, "grad_lse", {"(2, 2, 5)"}, [](Spoiled& s) { s.grad_lse->shape[1] = 2; });
}

TEST(BackwardErrors, Memory) {
  ExpectError(kValue, "out", {"null pointer"}, [](Spoiled& s) { s.out.data = nullptr; });
  ExpectError(kValue, "lse", {"null pointer"}, [](Spoiled& s) { s.lse.data = nullptr; });
  ExpectError(kValue, "grad_out", {"last dimension must be contiguous"},
              [](Spoiled& s) { s.grad_out.strides[3] = 0; });
  ExpectError(kValue, "grad_query", {"dimension 1 has stride 0", "overlap"},
              [](Spoiled& s) { s.gradients.query.strides[1] = 0; });
  ExpectError(kValue, "grad_query", {"overlaps the memory of query"}, [](Spoiled& s) {
    s.gradients.query.data = const_cast<void*>(s.arguments.query.data);
  });
  ExpectError(kValue, "grad_value", {"overlaps the memory of grad_out"},
              [](Spoiled& s) { s.gradients.value.data = const_cast<void*>(s.grad_out.data); });
  std::vector<float> shared(1000);  // longer than both, so that nothing else overlaps
  ExpectError(kValue, "grad_key", {"overlaps the memory of lse"},
              [&](Spoiled& s) { s.lse.data = s.gradients.key.data = shared.data(); });
  ExpectError(kValue, "grad_key", {"overlaps the memory of grad_lse"},
              [&](Spoiled& s) { s.grad_lse->data = s.gradients.key.data = shared.data(); });
  ExpectError(kValue, "grad_value", {"overlaps the memory of grad_key"},
              [&](Spoiled& s) { s.gradients.value.data = s.gradients.key.data = shared.data(); });
}

TEST(BackwardErrors, ThoseOfTheForwardCall) {
  ExpectError(kValue, "key", {"enable_gqa"}, [](Spoiled& s) { s.options.enable_gqa = false; });
  ExpectError(kValue, "num_threads", {"-1"}, [](Spoiled& s) { s.options.num_threads = -1; });
  ExpectError(kValue, "n_hashes", {"lsh"}, [](Spoiled& s) { s.options.n_hashes = 2; });
  ExpectError(kValue, "dropout_p", {"1.5"}, [](Spoiled& s) { s.options.dropout_p = 1.5; });
}

TEST(BackwardErrors, APlanOfAnotherCall) {
  const Spoiled s;
  const Call other({1, 1, 1, 5, 7, 3, 6});
  const Plan plan = smyrf::plan(other.arguments(), other.options);
  EXPECT_THROW(attention_backward(s.arguments, s.options, s.out, s.lse, s.grad_out, s.grad_lse,
                                  s.gradients, &plan),
               Error);
}

TEST(BackwardErrors, ABlockOfAKeyHeadWithoutNodes) {
  Random random(338);
  Call call({1, 1, 1, 20, 3, 4, 4});  // too few keys for a tree
  call.FillNormal(random);
  call.options.method = Method::kTree;
  PlanParts plan = PlanOf(call);
  const Result result = Attend(call, &plan);
  plan.heads[0].dense = false;
  plan.heads[0].blocks.emplace_back();
  EXPECT_THROW(Attend(call, &plan), Error);
  EXPECT_THROW(Backward(call, result, RandomUpstream(random, call, false), &plan), Error);
}

TEST(BackwardEmpty, CallsWithoutRowsWriteZeros) {
  Random random(332);
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    for (const Shape& shape :
         {Shape{0, 2, 2, 3, 3, 4, 4}, Shape{1, 0, 0, 3, 3, 4, 4}, Shape{1, 0, 2, 3, 3, 4, 4},
          Shape{1, 2, 2, 0, 3, 4, 4}, Shape{1, 2, 2, 3, 0, 4, 4}}) {
      Call call(shape);
      call.FillNormal(random);
      call.options.method = method;
      const Upstream upstream = RandomUpstream(random, call, true);
      const GradientTensors got = Backward(call, Attend(call), upstream);
      for (const Tensor* tensor : {&got.query, &got.key, &got.value}) {
        tensor->ForEach([&](auto... at) { EXPECT_EQ(tensor->at(at...), 0.0); });
      }
    }
  }
}

Call CallOf(Random& random, Method method) {
  Call call({1, 4, 2, 40, 100, 8, 8});
  call.FillNormal(random);
  call.options.method = method;
  if (method == Method::kLsh) call.options.cluster_size = 20;
  if (method == Method::kTree) call.options.max_density = 0.6;
  return call;
}

bool AllOf(const Tensor& tensor, std::int64_t h, const std::function<bool(double)>& holds) {
  bool all = true;
  tensor.ForEach([&](auto b, auto head, auto i, auto c) {
    all = all && (head != h || holds(tensor.at(b, head, i, c)));
  });
  return all;
}
bool IsNaN(double x) { return std::isnan(x); }
bool IsFinite(double x) { return std::isfinite(x); }

TEST(BackwardNonFinite, HeadsOfLshAndTreeAreNaNAndTheirKeyHeads) {
  Random random(333);
  for (const Method method : {Method::kLsh, Method::kTree}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
      Call call = CallOf(random, method);
      if (dtype == DType::kFloat16) {
        call = Call(call.shape, dtype);
        call.FillNormal(random);
        call.options = CallOf(random, method).options;
      }
      call.query.set(0, 1, 5, 2, kNaN);
      const Upstream upstream = RandomUpstream(random, call, false);
      ForEachInstructionSet([&] {
        const GradientTensors got = Backward(call, Attend(call), upstream);
        EXPECT_TRUE(AllOf(got.query, 0, IsFinite));
        EXPECT_TRUE(AllOf(got.query, 1, IsNaN));
        EXPECT_TRUE(AllOf(got.query, 2, IsFinite));
        EXPECT_TRUE(AllOf(got.key, 0, IsNaN));
        EXPECT_TRUE(AllOf(got.value, 0, IsNaN));
        EXPECT_TRUE(AllOf(got.key, 1, IsFinite));
        EXPECT_TRUE(AllOf(got.value, 1, IsFinite));
      });
    }
  }
}

TEST(BackwardNonFinite, PaddedRowsOfSuchHeadsStayZero) {
  Random random(334);
  for (const Method method : {Method::kLsh, Method::kTree}) {
    Call call = CallOf(random, method);
    call.key.set(0, 0, 50, 2, kInfinity);
    call.key_padding_mask = Tensor(DType::kBool, {1, 1, 1, 100});
    call.query_padding_mask = Tensor(DType::kBool, {1, 1, 1, 40});
    for (std::int64_t j = 0; j < 100; ++j) call.key_padding_mask->set(0, 0, 0, j, j < 90 ? 1 : 0);
    for (std::int64_t i = 0; i < 40; ++i) call.query_padding_mask->set(0, 0, 0, i, i > 3 ? 1 : 0);
    const GradientTensors got = Backward(call, Attend(call), RandomUpstream(random, call, false));
    for (const std::int64_t c : {0, 7}) {
      EXPECT_EQ(got.query.at(0, 0, 3, c), 0.0);
      EXPECT_TRUE(std::isnan(got.query.at(0, 1, 4, c)));
      EXPECT_TRUE(std::isnan(got.key.at(0, 0, 89, c)));
      EXPECT_EQ(got.key.at(0, 0, 90, c), 0.0);
      EXPECT_EQ(got.value.at(0, 0, 99, c), 0.0);
    }
  }
}

TEST(BackwardNonFinite, AQueryWithoutKeysAddsNothingWhateverItsGradient) {
  Random random(335);
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    const Call call = CallOf(random, method);
    Upstream upstream = RandomUpstream(random, call, true);
    Result result = Attend(call);
    result.lse[call.Row(0, 0, 7)] = -kFloatInfinity;  // as if the masks let it see nothing
    upstream.out.FillRow(0, 0, 7, kNaN);
    upstream.lse[call.Row(0, 0, 7)] = kFloatNaN;
    result.out.FillRow(0, 0, 7, kNaN);
    ForEachInstructionSet([&] {
      const GradientTensors got = Backward(call, result, upstream);
      for (std::int64_t c = 0; c < 8; ++c) EXPECT_EQ(got.query.at(0, 0, 7, c), 0.0);
      for (std::int64_t g = 0; g < 2; ++g) {
        EXPECT_TRUE(AllOf(got.key, g, IsFinite));
        EXPECT_TRUE(AllOf(got.value, g, IsFinite));
      }
    });
  }
}

TEST(BackwardNonFinite, AnyLseAndGradientEndWithoutACrash) {
  Random random(336);
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    const Call call = CallOf(random, method);
    for (const float wrong : {kFloatNaN, kFloatInfinity, -3e38F, 3e38F}) {
      Upstream upstream = RandomUpstream(random, call, true);
      Result result = Attend(call);
      result.lse[call.Row(0, 1, 3)] = wrong;
      result.out.FillRow(0, 2, 4, wrong);
      upstream.out.FillRow(0, 3, 5, wrong);
      upstream.lse[call.Row(0, 3, 6)] = wrong;
      ForEachInstructionSet([&] {
        const GradientTensors got = Backward(call, result, upstream);
        // Other queries have the gradients that they had.
        EXPECT_TRUE(AllOf(got.query, 0, IsFinite));
        EXPECT_EQ(std::isnan(got.query.at(0, 1, 3, 0)), std::isnan(wrong));
      });
    }
  }
}

TEST(BackwardNonFinite, AValueThatIsMaskedReachesNoKey) {
  // Causal: NaN in the last value reaches the last query's gradients, not those of keys before it
  // by the other queries' masked pairs.
  Random random(337);
  Call call({1, 1, 1, 6, 6, 4, 4});
  call.FillNormal(random);
  call.options.is_causal = true;
  Upstream upstream = RandomUpstream(random, call, false);
  call.value.FillRow(0, 0, 5, kNaN);
  Result result = Attend(call);
  // As if the last query had no gradient at all.
  result.lse[5] = -kFloatInfinity;
  for (std::int64_t i = 0; i < 5; ++i) {
    for (std::int64_t c = 0; c < 4; ++c) result.out.set(0, 0, i, c, 0.5);
  }
  ForEachInstructionSet([&] {
    const GradientTensors got = Backward(call, result, upstream);
    EXPECT_TRUE(AllOf(got.key, 0, IsFinite));
    EXPECT_TRUE(AllOf(got.value, 0, IsFinite));
  });
}

}  // namespace
}  // namespace smyrf::testing
