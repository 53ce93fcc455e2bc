// Exact: carrying out an `lsh` plan, against the float64 reference on the same plan.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "testing/bounds.h"
#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

double Merges(const Call& call) {
  return static_cast<double>(call.options.n_hashes.value_or(kDefaultHashes));
}

TEST(Lsh, RandomCalls) {
  Random random(60);
  for (int n = 0; n < 300 && !::testing::Test::HasFatalFailure(); ++n) {
    const Call call = RandomLshCall(random, 3e5);
    SCOPED_TRACE(::testing::Message() << "call " << n << ": " << call);
    const Layout layout = random.Of({Layout::kContiguous, Layout::kBnhd, Layout::kGaps,
                                     Layout::kReversed, Layout::kHeadsReversed});
    // One plan for all instruction sets: their own may differ where projections nearly tie.
    const PlanParts made = PlanOf(call);
    const Exact exact = RunReference(call, &made);
    ForEachInstructionSet([&] {
      const Result result = Attend(call, &made, layout);
      ASSERT_TRUE(Close(call, result, exact, Merges(call)));
      ASSERT_TRUE(result.out.GapsUntouched());
    });
    const Result result = Attend(call);
    ASSERT_EQ(result.statistics.method, Method::kLsh);
    ASSERT_TRUE(Close(call, result, exact, Merges(call)));
    call.ForEachRow([&](auto b, auto h, auto) {
      const Statistics::Head& head =
          result.statistics.heads[static_cast<std::size_t>(b * call.shape.query_heads + h)];
      ASSERT_DOUBLE_EQ(head.density, DensityOf(made, b, h));
      ASSERT_EQ(head.dense, made.head(0, b, h).dense);
      ASSERT_FALSE(head.non_finite);
      ASSERT_GE(head.seconds, 0.0);
    });
  }
}

TEST(Lsh, EveryNumberOfQueriesAndKeysUpToOneBlockAndMore) {
  Random random(61);
  for (std::int64_t length = 1; length <= 70; ++length) {
    for (const bool more_keys : {false, true}) {
      Call call({1, 1, 1, length, more_keys ? 3 * length : (length + 1) / 2, 12, 7});
      call.FillNormal(random);
      call.options.method = Method::kLsh;
      call.options.n_hashes = 2;
      call.options.cluster_size = 5;
      const PlanParts made = PlanOf(call);
      ASSERT_TRUE(Close(call, Attend(call, &made), RunReference(call, &made), 2.0));
    }
  }
}

TEST(Lsh, LongSequences) {
  Random random(62);
  Call call({1, 2, 1, 1500, 2100, 16, 16}, DType::kFloat16);
  call.FillNormal(random);
  call.options.method = Method::kLsh;
  call.options.n_hashes = 4;
  call.options.cluster_size = 300;  // clusters of several blocks and tiles
  call.options.num_threads = 2;
  const PlanParts made = PlanOf(call);
  EXPECT_TRUE(Close(call, Attend(call, &made), RunReference(call, &made), 4.0));
}

/// The plan of one round alone.
PlanParts Round(const PlanParts& plan, std::int64_t round) {
  PlanParts one = plan;
  one.n_hashes = 1;
  one.heads.clear();
  for (std::int64_t b = 0; b < plan.batch; ++b) {
    for (std::int64_t h = 0; h < plan.query_heads; ++h) {
      one.heads.push_back(plan.head(round, b, h));
    }
  }
  return one;
}

TEST(Lsh, ManyRoundsAreDoneInPartsWithTheSameBits) {
  Random random(66);
  Call call({2, 2, 1, 5000, 9000, 4, 3}, DType::kFloat16);
  call.FillNormal(random);
  call.options.method = Method::kLsh;
  call.options.n_hashes = 170;
  call.options.cluster_size = 9;
  // The second batch entry is a single cluster: its only round is the first part's.
  call.key_padding_mask = Tensor(DType::kBool, {1, 1, 2, 9000});
  for (std::int64_t j = 0; j < 9000; ++j) {
    call.key_padding_mask->set(0, 0, 0, j, 1.0);
    call.key_padding_mask->set(0, 0, 1, j, j < 7 ? 1.0 : 0.0);
  }
  const PlanParts whole = PlanOf(call);
  const Result at_once = Attend(call, &whole);
  const Result in_parts = Attend(call);
  EXPECT_TRUE(in_parts.SameBits(at_once));
  for (std::size_t head = 0; head < 4; ++head) {
    EXPECT_NEAR(in_parts.statistics.heads[head].density, at_once.statistics.heads[head].density,
                1e-12);
    EXPECT_EQ(in_parts.statistics.heads[head].dense, head >= 2);
  }
}

TEST(Lsh, RoundsMergeByLse) {
  Random random(63);
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    Call call({2, 2, 1, 40, 50, 16, 9}, dtype);
    call.FillNormal(random);
    call.options.method = Method::kLsh;
    call.options.n_hashes = 5;
    call.options.cluster_size = 6;
    const PlanParts made = PlanOf(call);
    // The paper's weighting, in float64, of each round's own out and lse.
    Exact merged;
    const auto dv = static_cast<std::size_t>(call.shape.value_depth);
    merged.out.assign(call.rows() * dv, 0.0);
    merged.lse.assign(call.rows(), 0.0);
    std::vector<double> total(call.rows(), 0.0);
    Call single = call;  // float32 out, so that only the merge is between the two results
    single.query = Tensor(DType::kFloat32, call.query.shape());
    single.key = Tensor(DType::kFloat32, call.key.shape());
    single.value = Tensor(DType::kFloat32, call.value.shape());
    single.query.ForEach([&](auto... at) { single.query.set(at..., call.query.at(at...)); });
    single.key.ForEach([&](auto... at) { single.key.set(at..., call.key.at(at...)); });
    single.value.ForEach([&](auto... at) { single.value.set(at..., call.value.at(at...)); });
    single.options.n_hashes = 1;
    for (std::int64_t round = 0; round < 5; ++round) {
      const PlanParts one = Round(made, round);
      const Result part = Attend(single, &one);
      single.ForEachRow([&](auto b, auto h, auto i) {
        const std::size_t row = call.Row(b, h, i);
        const double weight = std::exp(static_cast<double>(part.lse[row]));
        total[row] += weight;
        for (std::size_t c = 0; c < dv; ++c) {
          merged.out[row * dv + c] += weight * part.out.at(b, h, i, static_cast<std::int64_t>(c));
        }
      });
    }
    for (std::size_t row = 0; row < call.rows(); ++row) {
      merged.lse[row] = std::log(total[row]);
      for (std::size_t c = 0; c < dv; ++c) merged.out[row * dv + c] /= total[row];
    }
    EXPECT_TRUE(Close(call, Attend(call), merged, 5.0));
    EXPECT_TRUE(Close(call, Attend(call), RunReference(call, &made), 5.0));
  }
}

TEST(Lsh, ASingleClusterIsDenseOnceAndSaysSo) {
  Random random(64);
  Call call({2, 2, 2, 30, 50, 16, 16});
  call.FillNormal(random);
  const Call dense = call;
  call.options.method = Method::kLsh;
  call.options.n_hashes = 4;
  for (const std::int64_t cluster_size : {34, 50, 51, 1 << 30}) {
    call.options.cluster_size = cluster_size;
    const Result result = Attend(call);
    EXPECT_TRUE(Close(call, result, RunReference(dense), 0.0));
    EXPECT_NE(result.statistics.reason.find("dense"), std::string::npos)
        << result.statistics.reason;
    for (const Statistics::Head& head : result.statistics.heads) {
      EXPECT_TRUE(head.dense);
      EXPECT_EQ(head.density, 1.0);  // not n_hashes
    }
  }
  // round(50 / 33) = 2 clusters.
  call.options.cluster_size = 33;
  const Result result = Attend(call);
  EXPECT_EQ(result.statistics.reason.find("dense"), std::string::npos) << result.statistics.reason;
  for (const Statistics::Head& head : result.statistics.heads) EXPECT_FALSE(head.dense);
}

TEST(Lsh, DialsDefaultAsDocumented) {
  Random random(65);
  Call call({1, 1, 1, 100, 160, 8, 8});
  call.FillNormal(random);
  call.options.method = Method::kLsh;
  const PlanParts made = PlanOf(call);
  EXPECT_EQ(made.n_hashes, 8);
  EXPECT_EQ(made.cluster_size, 32);
  EXPECT_EQ(made.head(7, 0, 0).blocks.size(), 5U);
}

}  // namespace
}  // namespace smyrf::testing
