// Exact and hostile: a method that the library does not have, through its public calls.
#include "methods/window/window.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "testing/bounds.h"
#include "testing/gradients.h"
#include "testing/refused.h"

namespace smyrf::testing {
namespace {

struct Case {
  const char* name;
  Shape shape;
  std::optional<Window> window;
  DType dtype = DType::kFloat32;
  bool is_causal = false;
  bool is_padded = false;
  double dropout_p = 0.0;
};

constexpr auto kUnknown = Method{127};

const Case kCases[] = {
    {"plain", {2, 4, 2, 90, 90, 16, 16}, Window{7, 3}},
    {"its own window", {1, 2, 2, 300, 300, 8, 8}, std::nullopt},
    {"fewer queries", {1, 2, 1, 40, 300, 8, 12}, std::nullopt},
    {"more queries", {1, 2, 1, 90, 30, 8, 12}, Window{5, 60}},
    {"causal", {1, 2, 2, 90, 90, 16, 8}, Window{20, 20}, DType::kFloat16, true},
    {"padded", {2, 2, 1, 70, 80, 8, 8}, Window{9, 0}, DType::kFloat32, false, true},
    {"dropout", {1, 2, 2, 60, 60, 8, 8}, Window{9, 9}, DType::kBFloat16, false, false, 0.25},
    {"wide", {1, 1, 1, 30, 30, 8, 8}, Window{std::numeric_limits<std::int64_t>::max(), 0}},
    {"no keys", {1, 2, 2, 5, 0, 8, 8}, Window{2, 2}},
};

Call CallOf(const Case& c) {
  Random random(1);
  Call call(c.shape, c.dtype);
  call.FillNormal(random);
  call.options.method = kWindow;
  call.options.window = c.window;
  call.options.is_causal = c.is_causal;
  call.options.dropout_p = c.dropout_p;
  call.options.seed = c.dropout_p > 0.0 ? 5 : 0;
  if (c.is_padded) {
    call.key_padding_mask.emplace(DType::kBool, Tensor::Index{1, 1, c.shape.batch, c.shape.keys});
    call.query_padding_mask.emplace(DType::kBool,
                                    Tensor::Index{1, 1, c.shape.batch, c.shape.queries});
    for (Tensor* mask : {&*call.key_padding_mask, &*call.query_padding_mask}) {
      mask->ForEach([&](auto... at) { mask->set(at..., random.Chance(0.7) ? 1.0 : 0.0); });
    }
  }
  return call;
}

/// The same call of `dense`.
Call Dense(Call call) {
  call.options.method = Method::kDense;
  if (!call.options.window) call.options.window = kDefaultWindow;
  return call;
}

/// Pairs of one batch entry that the call allows.
double Allowed(const Call& call, std::int64_t b) {
  double pairs = 0.0;
  for (std::int64_t i = 0; i < call.shape.queries; ++i) {
    for (std::int64_t j = 0; j < call.shape.keys; ++j)
      pairs += call.Allowed(b, 0, i, j) ? 1.0 : 0.0;
  }
  return pairs;
}

double Density(const Call& call, std::int64_t b) {
  Call everything = call;
  everything.options.window.reset();
  const double allowed = Allowed(everything, b);
  return allowed > 0.0 ? Allowed(Dense(call), b) / allowed : 1.0;
}

void ExpectDensity(const Call& call, const Statistics& statistics, const Plan& made) {
  EXPECT_EQ(statistics.method, kWindow);
  ASSERT_EQ(std::ssize(statistics.heads), call.shape.batch * call.shape.query_heads);
  for (std::int64_t b = 0; b < call.shape.batch; ++b) {
    for (std::int64_t h = 0; h < call.shape.query_heads; ++h) {
      const auto& head = statistics.heads[static_cast<std::size_t>(b * call.shape.query_heads + h)];
      EXPECT_DOUBLE_EQ(head.density, Density(call, b));
      EXPECT_EQ(head.expected_error, 0.0);
      EXPECT_DOUBLE_EQ(made.density(b, h), Density(call, b));
    }
  }
}

class WindowCalls : public ::testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Cases, WindowCalls, ::testing::ValuesIn(kCases), [](const auto& given) {
  std::string name = given.param.name;
  std::erase(name, ' ');
  return name;
});

TEST_P(WindowCalls, AreDenseAttentionInTheBand) {
  const Call call = CallOf(GetParam());
  const Call dense = Dense(call);
  Plan kept;
  const Result result = Attend(call, nullptr, Layout::kContiguous, &kept);
  EXPECT_TRUE(result.SameBits(Attend(dense)));
  EXPECT_TRUE(Close(dense, result, RunReference(call), 2.0));
  ExpectDensity(call, result.statistics, kept);
}

TEST_P(WindowCalls, HaveTheGradientsOfDenseAttention) {
  const Call call = CallOf(GetParam());
  const Call dense = Dense(call);
  Random random(2);
  const Upstream upstream = RandomUpstream(random, call, true);
  const Result result = Attend(call);
  const GradientTensors gradients = Backward(call, result, upstream);
  EXPECT_TRUE(gradients.SameBits(Backward(dense, result, upstream)));
  EXPECT_TRUE(CloseGradients(dense, gradients, ReferenceBackward(call, upstream), upstream));
}

TEST_P(WindowCalls, CanBePlannedAndThePlanSaved) {
  Call call = CallOf(GetParam());
  const Plan made = plan(call.arguments(), call.options);
  Plan kept;
  const Result result = Attend(call, nullptr, Layout::kContiguous, &kept);
  EXPECT_EQ(made.to_bytes(), kept.to_bytes());
  const std::string path = ::testing::TempDir() + "smyrf_window_plan";
  made.save(path);
  const Plan loaded = Plan::load(path);
  EXPECT_EQ(loaded.to_bytes(), made.to_bytes());
  EXPECT_EQ(loaded.info().method, kWindow);
  call.options.window.reset();  // the plan's holds
  EXPECT_TRUE(result.SameBits(Attend(call, &loaded)));
  const Exact exact = RunReference(call, &loaded);
  EXPECT_TRUE(Close(Dense(CallOf(GetParam())), result, exact, 2.0));
}

TEST_P(WindowCalls, CanBeEstimated) {
  const Call call = CallOf(GetParam());
  ExpectDensity(call, estimate(call.arguments(), call.options),
                plan(call.arguments(), call.options));
}

TEST(Window, IsInTheTableOfMethods) {
  EXPECT_EQ(methods().back()->method, kWindow);
  EXPECT_EQ(method_named("window"), kWindow);
  EXPECT_STREQ(name(kWindow), "window");
  EXPECT_STREQ(name(kUnknown), "?");
}

TEST(Window, StatisticsCanBeSaved) {
  const Result result = Attend(CallOf(kCases[0]));
  const Statistics again = Statistics::from_bytes(result.statistics.to_bytes());
  EXPECT_EQ(again.method, kWindow);
  EXPECT_EQ(again.heads.front().density, result.statistics.heads.front().density);
}

TEST(Window, RefusesWhatItDoesNotTake) {
  const auto refused = [](ErrorKind kind, const char* message, const auto& spoil) {
    Call call = CallOf(kCases[0]);
    spoil(call);
    ExpectRefused(kind, message, [&] { Attend(call); });
    ExpectRefused(kind, message, [&] { plan(call.arguments(), call.options); });
    ExpectRefused(kind, message, [&] { estimate(call.arguments(), call.options); });
    ExpectRefused(kind, message, [&] { RunReference(call); });
  };
  refused(ErrorKind::kValue, "window: got (3, -1), method window needs a bound on both sides",
          [](Call& call) { call.options.window = Window{3, -1}; });
  refused(ErrorKind::kUnsupported, "attn_mask: method window", [](Call& call) {
    call.attn_mask.emplace(DType::kFloat32, Tensor::Index{1, 1, 90, 90});
    call.attn_mask->ForEach([&](auto... at) { call.attn_mask->set(at..., 0.0); });
  });
  refused(ErrorKind::kValue, "n_hashes: is a dial of method lsh, but the method is window",
          [](Call& call) { call.options.n_hashes = 4; });
  refused(ErrorKind::kValue,
          "cluster_size: is a dial of methods lsh and local, but the method is window; pass "
          "method='lsh' or method='local' or leave cluster_size out",
          [](Call& call) { call.options.cluster_size = 4; });
  refused(ErrorKind::kValue, "tolerance: is a dial of method tree, but the method is window",
          [](Call& call) { call.options.tolerance = 0.1; });
  refused(ErrorKind::kValue, "seed: is a dial of method",
          [](Call& call) { call.options.seed = 4; });
  refused(ErrorKind::kValue,
          "got number 127, accepted are auto, dense, lsh, tree, local and window",
          [](Call& call) { call.options.method = kUnknown; });
}

TEST(Window, RefusesPlansThatAreNotItsOwn) {
  Call call = CallOf(kCases[0]);
  const Plan made = plan(call.arguments(), call.options);
  call.options.window = Window{7, 4};
  ExpectRefused(ErrorKind::kValue, "window: differs from the plan's", [&] { Attend(call, &made); });
  call.options = Dense(call).options;
  ExpectRefused(ErrorKind::kValue, "method: differs from the plan's", [&] { Attend(call, &made); });
  for (const std::optional<Window> window :
       {std::optional<Window>(), std::optional(Window{3, -1})}) {
    PlanParts parts = Unpack(made);
    parts.window = window;
    ExpectRefused(ErrorKind::kValue, "plan: its masks are damaged: the window must have both sides",
                  [&] { Plan::from_bytes(Pack(std::move(parts)).to_bytes()); });
  }
  PlanParts parts = Unpack(made);
  parts.heads.resize(8);
  ExpectRefused(ErrorKind::kValue, "plan: its heads are damaged",
                [&] { Plan::from_bytes(Pack(std::move(parts)).to_bytes()); });
}

}  // namespace
}  // namespace smyrf::testing
