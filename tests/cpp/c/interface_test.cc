// Exact: calls from C give the bits and the messages of the same calls from C++.
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "smyrf/methods.h"
#include "smyrf/smyrf.h"
#include "testing/c_call.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

/// Calls of every method, with all kinds of masks, grouped queries, layouts and dials.
template <class Body>
void ForRandomCalls(std::uint64_t seed, int count, const Body& body) {
  Random random(seed);
  for (int i = 0; i < count; ++i) {
    Call call = i % 3 == 0   ? RandomDenseCall(random, 2e5)
                : i % 3 == 1 ? RandomLshCall(random, 2e5)
                             : RandomTreeCall(random, 2e5);
    call.options.num_threads = 1 + i % 2;
    if (i % 3 == 0 && i % 2 == 0) call.options.dropout_p = 0.2;
    if (i % 6 == 3) call.options.positions = Positions{random.Below(50), random.Below(50)};
    body(call, random);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(CInterface, ForwardAndBackwardHaveTheBitsOfCpp) {
  ForRandomCalls(1, 60, [](const Call& call, Random& random) {
    const CallC from_c(call);
    OutputsC outputs(call);
    smyrf_plan* plan = nullptr;
    outputs.c.plan = &plan;
    ASSERT_EQ(smyrf_attention(&from_c.c, &outputs.c), SMYRF_OK) << smyrf_last_error() << call;
    Plan kept;
    const Result expected = Attend(call, nullptr, Layout::kContiguous, &kept);
    EXPECT_TRUE(outputs.result.SameBits(expected)) << call;

    const Upstream upstream = RandomUpstream(random, call, random.Chance(0.5));
    const GradientTensors expected_gradients = Backward(call, expected, upstream, &kept);
    smyrf_call with_plan = from_c.c;
    with_plan.plan = plan;
    GradientTensors gradients(call);
    ASSERT_EQ(BackwardC(with_plan, outputs, upstream, gradients), SMYRF_OK) << smyrf_last_error();
    EXPECT_TRUE(gradients.SameBits(expected_gradients)) << call;
    smyrf_plan_free(plan);
  });
}

TEST(CInterface, QueriesOfAnotherDtype) {
  Random random(2);
  Call call({1, 4, 2, 70, 90, 16, 12}, DType::kBFloat16);
  call.query = Tensor(DType::kFloat32, {1, 4, 70, 16});
  call.FillNormal(random);
  const CallC from_c(call);
  const OutputsC outputs(call);
  ASSERT_EQ(smyrf_attention(&from_c.c, &outputs.c), SMYRF_OK) << smyrf_last_error();
  EXPECT_TRUE(outputs.result.SameBits(Attend(call)));
}

TEST(CInterface, EveryDialOfEveryMethodArrives) {
  const Call call({1, 1, 1, 8, 8, 4, 4});
  for (const MethodInfo* method : methods()) {
    for (const Dial* dial : method->dials) {
      CallC from_c(call);
      from_c.c.method = method->name;
      const double wrong = dial->least - 1.0;
      const auto whole = static_cast<std::int64_t>(wrong);
      const std::string name = dial->option.name;
      // A dial that this table does not have is to be added to smyrf_call.
      if (name == "n_hashes") {
        from_c.c.n_hashes = &whole;
      } else if (name == "cluster_size") {
        from_c.c.cluster_size = &whole;
      } else if (name == "tolerance") {
        from_c.c.tolerance = &wrong;
      } else if (name == "max_density") {
        from_c.c.max_density = &wrong;
      } else {
        FAIL() << "smyrf_call has no " << name;
      }
      const OutputsC outputs(call);
      EXPECT_EQ(smyrf_attention(&from_c.c, &outputs.c), SMYRF_ERROR_VALUE) << name;
      EXPECT_EQ(std::string(smyrf_last_error()).rfind(name + ": got ", 0), 0U)
          << smyrf_last_error();
    }
  }
}

TEST(CInterface, PlansGoThroughFilesAndMemory) {
  ForRandomCalls(3, 3, [](const Call& call, Random& /*random*/) {
    const CallC from_c(call);
    smyrf_plan* made = nullptr;
    ASSERT_EQ(smyrf_make_plan(&from_c.c, &made), SMYRF_OK) << smyrf_last_error();
    const std::string path = ::testing::TempDir() + "smyrf_c_interface.plan";
    smyrf_plan* loaded = nullptr;
    ASSERT_EQ(smyrf_plan_save(made, path.c_str()), SMYRF_OK) << smyrf_last_error();
    ASSERT_EQ(smyrf_plan_load(path.c_str(), &loaded), SMYRF_OK) << smyrf_last_error();
    EXPECT_EQ(std::remove(path.c_str()), 0);

    std::size_t size = 0;
    ASSERT_EQ(smyrf_plan_to_bytes(loaded, nullptr, &size), SMYRF_OK);
    std::vector<char> bytes(size);
    size -= 1;
    EXPECT_EQ(smyrf_plan_to_bytes(loaded, bytes.data(), &size), SMYRF_ERROR_VALUE);
    size = bytes.size();
    ASSERT_EQ(smyrf_plan_to_bytes(loaded, bytes.data(), &size), SMYRF_OK);
    EXPECT_EQ(std::string(bytes.data(), size), plan(call.arguments(), call.options).to_bytes());
    smyrf_plan* again = nullptr;
    ASSERT_EQ(smyrf_plan_from_bytes(bytes.data(), size, &again), SMYRF_OK);
    bytes[size / 2] ^= 1;
    smyrf_plan* damaged = made;
    EXPECT_EQ(smyrf_plan_from_bytes(bytes.data(), size, &damaged), SMYRF_ERROR_VALUE);
    EXPECT_EQ(damaged, nullptr);

    const OutputsC outputs(call);
    smyrf_call with_plan = from_c.c;
    with_plan.plan = again;
    ASSERT_EQ(smyrf_attention(&with_plan, &outputs.c), SMYRF_OK) << smyrf_last_error();
    const Plan in_cpp = plan(call.arguments(), call.options);
    EXPECT_TRUE(outputs.result.SameBits(Attend(call, &in_cpp))) << call;
    for (smyrf_plan* handle : {made, loaded, again}) smyrf_plan_free(handle);
  });
}

TEST(CInterface, InfoAndDensityOfAPlan) {
  Random random(4);
  Call call({2, 4, 2, 60, 80, 8, 8});
  call.FillNormal(random);
  call.options.method = Method::kDense;
  call.options.is_causal = true;
  call.options.window = Window{7, -1};
  call.options.positions = Positions{30, 10};
  const CallC from_c(call);
  smyrf_plan* plan = nullptr;
  ASSERT_EQ(smyrf_make_plan(&from_c.c, &plan), SMYRF_OK) << smyrf_last_error();
  auto info = Sized<smyrf_plan_info>();
  ASSERT_EQ(smyrf_plan_get_info(plan, &info), SMYRF_OK) << smyrf_last_error();
  EXPECT_STREQ(info.method, "dense");
  EXPECT_GT(std::strlen(info.reason), 0U);
  EXPECT_EQ(
      (std::array{info.batch, info.query_heads, info.key_heads, info.queries, info.keys, info.depth,
                  info.window[0], info.window[1], info.positions[0], info.positions[1]}),
      (std::array<std::int64_t, 10>{2, 4, 2, 60, 80, 8, 7, -1, 30, 10}));
  EXPECT_EQ((std::array{info.is_causal, info.has_attn_mask, info.has_window, info.has_positions,
                        info.has_max_density}),
            (std::array{1, 0, 1, 1, 0}));
  double density = -1.0;
  ASSERT_EQ(smyrf_plan_density(plan, 1, 3, &density), SMYRF_OK);
  EXPECT_EQ(density, smyrf::plan(call.arguments(), call.options).density(1, 3));
  for (const auto& [b, h] : {std::pair{2, 0}, {0, 4}, {-1, 0}, {0, -1}}) {
    EXPECT_EQ(smyrf_plan_density(plan, b, h, &density), SMYRF_ERROR_VALUE);
  }
  smyrf_plan_free(plan);
}

TEST(CInterface, StatisticsAndEstimates) {
  Random random(5);
  Call call({2, 4, 2, 200, 300, 16, 12});
  FillSmooth(random, call);
  call.options.method = Method::kTree;
  const CallC from_c(call);
  const Result expected = Attend(call);
  const Statistics estimated = estimate(call.arguments(), call.options);
  smyrf_statistics* statistics = nullptr;
  ASSERT_EQ(smyrf_statistics_create(&statistics), SMYRF_OK);
  OutputsC outputs(call);
  outputs.c.statistics = statistics;
  for (const Statistics* cpp : {&expected.statistics, &estimated}) {
    ASSERT_EQ(cpp == &estimated ? smyrf_estimate(&from_c.c, statistics)
                                : smyrf_attention(&from_c.c, &outputs.c),
              SMYRF_OK)
        << smyrf_last_error();
    auto summary = Sized<smyrf_summary>();
    ASSERT_EQ(smyrf_statistics_summary(statistics, &summary), SMYRF_OK);
    EXPECT_STREQ(summary.method, "tree");
    EXPECT_EQ(summary.reason, cpp->reason);
    EXPECT_EQ(summary.instruction_set, cpp->instruction_set);
    EXPECT_EQ(summary.batch, 2);
    EXPECT_EQ(summary.query_heads, 4);
    EXPECT_GT(summary.planning_seconds + summary.execution_seconds, 0.0);
    for (std::int64_t i = 0; i < 8; ++i) {
      auto head = Sized<smyrf_head>();
      ASSERT_EQ(smyrf_statistics_head(statistics, i / 4, i % 4, &head), SMYRF_OK);
      const Statistics::Head& in_cpp = cpp->heads[static_cast<std::size_t>(i)];
      EXPECT_EQ(head.density, in_cpp.density);
      EXPECT_EQ(head.expected_error, in_cpp.expected_error);
      EXPECT_EQ(head.expected_lse_error, in_cpp.expected_lse_error);
      EXPECT_EQ(head.expected_work, in_cpp.expected_work);
      EXPECT_EQ(head.dense == 1, in_cpp.dense);
      EXPECT_EQ(head.non_finite == 1, in_cpp.non_finite);
    }
  }
  auto head = Sized<smyrf_head>();
  EXPECT_EQ(smyrf_statistics_head(statistics, 2, 0, &head), SMYRF_ERROR_VALUE);
  smyrf_call lsh = from_c.c;
  lsh.method = "lsh";
  EXPECT_EQ(smyrf_estimate(&lsh, statistics), SMYRF_ERROR_UNSUPPORTED);
  smyrf_statistics_free(statistics);
}

TEST(CInterface, MergeHasTheBitsOfCpp) {
  Random random(6);
  Call call({1, 3, 3, 50, 60, 8, 8}, DType::kFloat16);
  call.FillNormal(random);
  Result expected = Attend(call);
  OutputsC merged(call);
  merged.result.out = expected.out;
  merged.result.lse = expected.lse;
  merged.out = TensorC(merged.result.out.mutable_view());
  merged.lse = smyrf_lse(merged.result.lse.data(), 1, 3, 50);
  call.FillNormal(random);
  Result other = Attend(call);
  const smyrf_tensor other_out = TensorC(other.out.view());
  const smyrf_tensor other_lse = smyrf_lse(other.lse.data(), 1, 3, 50);
  ASSERT_EQ(smyrf_merge(&merged.out, &merged.lse, &other_out, &other_lse, 2, nullptr), SMYRF_OK)
      << smyrf_last_error();
  const auto lse = [](Result& result) {
    return Contiguous<void>(result.lse.data(), DType::kFloat32, {1, 3, 50});
  };
  const MutableTensorView from = lse(other);
  merge(expected.out.mutable_view(), lse(expected), other.out.view(),
        {from.data, from.dtype, from.rank, from.shape, from.strides});
  EXPECT_TRUE(merged.result.SameBits(expected));
}

TEST(CInterface, ListsEndWithNull) {
  EXPECT_STREQ(smyrf_version(), SMYRF_VERSION_STRING);
  std::size_t i = 0;
  for (const MethodInfo* method : methods()) {
    EXPECT_STREQ(smyrf_method_name(i), method->name);
    EXPECT_STREQ(smyrf_method_summary(i++), method->summary);
  }
  i = 0;
  for (const std::string& set : instruction_sets()) {
    EXPECT_EQ(smyrf_instruction_set(i), set);
    EXPECT_EQ(smyrf_force_instruction_set(set.c_str()), SMYRF_OK);
    ++i;
  }
  EXPECT_EQ(smyrf_force_instruction_set("AVX99"), SMYRF_ERROR_VALUE);
  EXPECT_EQ(smyrf_force_instruction_set(nullptr), SMYRF_OK);
  EXPECT_EQ(smyrf_instruction_set(i), nullptr);
  EXPECT_EQ(smyrf_method_name(methods().size()), nullptr);
  EXPECT_EQ(smyrf_method_summary(static_cast<std::size_t>(-1)), nullptr);
}

TEST(CInterface, ContiguousHelpersAgreeWithCpp) {
  const float data = 0.0F;
  const smyrf_tensor rows = smyrf_rows(&data, SMYRF_FLOAT16, 2, 3, 4, 5);
  const smyrf_tensor expected =
      TensorC(Contiguous<const void>(&data, DType::kFloat16, {2, 3, 4, 5}));
  EXPECT_EQ(std::memcmp(&rows, &expected, sizeof(rows)), 0);
  const unsigned char flag = 1;
  const smyrf_tensor mask = smyrf_padding(&flag, 2, 7);
  const smyrf_tensor expected_mask = TensorC(Contiguous<const void>(&flag, DType::kBool, {2, 7}));
  EXPECT_EQ(std::memcmp(&mask, &expected_mask, sizeof(mask)), 0);
}

}  // namespace
}  // namespace smyrf::testing
