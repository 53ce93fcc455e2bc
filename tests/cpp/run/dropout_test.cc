// Relative: dropout in `dense` and `lsh` against the float64 reference, forward and backward.
// Exact: what it may depend on. Statistical: that it drops as many as asked, and evenly.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "simd/dropout.h"
#include "testing/bounds.h"
#include "testing/gradients.h"
#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

void ExpectCloseWithDropout(Random& random, Call call, double merges) {
  call.options.dropout_p = random.Of({0.1, 0.3, 0.5});
  call.options.seed = static_cast<std::uint64_t>(random.Below(1000));
  const PlanParts plan = PlanOf(call);
  const Upstream upstream = RandomUpstream(random, call, random.Chance(0.5));
  const Exact exact = RunReference(call, &plan);
  const ExactGradients gradients = ReferenceBackward(call, upstream, &plan);
  ForEachInstructionSet([&] {
    const Result result = Attend(call, &plan);
    ASSERT_TRUE(Close(call, result, exact, merges));
    ASSERT_TRUE(CloseGradients(call, Backward(call, result, upstream, &plan), gradients, upstream));
  });
}

TEST(Dropout, DenseIsTheReferences) {
  Random random(320);
  for (int n = 0; n < 60 && !::testing::Test::HasFatalFailure(); ++n) {
    SCOPED_TRACE(n);
    ExpectCloseWithDropout(random, RandomDenseCall(random, 3e5), 0.0);
  }
  // Keys in chunks, of few queries and of one.
  for (const std::int64_t queries : {1, 20}) {
    Call call({1, 1, 1, queries, 5000, 8, 8});
    call.FillNormal(random);
    ExpectCloseWithDropout(random, call, 3.0);
  }
}

TEST(Dropout, LshIsTheReferences) {
  Random random(321);
  for (int n = 0; n < 40 && !::testing::Test::HasFatalFailure(); ++n) {
    SCOPED_TRACE(n);
    ExpectCloseWithDropout(random, RandomLshCall(random, 3e5), 5.0);
  }
}

TEST(Dropout, LeavesLseAndDropsAPairInEveryRoundOrNone) {
  Random random(322);
  Call call({1, 2, 2, 40, 30, 8, 8});
  call.FillNormal(random);
  call.options.method = Method::kDense;
  const Result without = Attend(call);
  call.options.seed = 7;
  call.options.dropout_p = 0.4;
  const Result dense = Attend(call);
  EXPECT_EQ(dense.lse, without.lse);
  EXPECT_NE(dense.out.memory(), without.out.memory());
  // A single cluster holds every pair.
  call.options.method = Method::kLsh;
  call.options.cluster_size = 1000;
  EXPECT_TRUE(Attend(call).SameBits(dense));
}

TEST(Dropout, DependsOnSeedAndPositionsOnly) {
  // Rows that are taken out by padding change nothing for the others.
  Random random(323);
  Call call({2, 2, 1, 70, 90, 4, 90});
  call.FillNormal(random);
  call.options.method = Method::kDense;
  call.options.dropout_p = 0.5;
  call.options.seed = 3;
  // With values of unit vectors, out is the row of weights.
  call.value.ForEach(
      [&](auto b, auto g, auto j, auto c) { call.value.set(b, g, j, c, j == c ? 1.0 : 0.0); });
  const Result all = Attend(call);
  call.key_padding_mask = RandomPadding(random, 2, 90);
  call.query_padding_mask = RandomPadding(random, 2, 70);
  const Result some = Attend(call);
  const Dropout dropout(0.5, 3);
  call.ForEachRow([&](auto b, auto h, auto i) {
    for (std::int64_t j = 0; j < 90; ++j) {
      const bool kept = dropout.Of(dropout.Row(b, h, i), j) != 0.0F;
      EXPECT_EQ(all.out.at(b, h, i, j) != 0.0, kept);
      if (!call.IsValidQuery(b, i) || !call.IsValidKey(b, j)) continue;
      EXPECT_EQ(some.out.at(b, h, i, j) != 0.0, kept);
    }
  });
  call.options.seed = 4;
  EXPECT_NE(Attend(call).out.memory(), some.out.memory());
}

TEST(Dropout, DropsAsManyAsAskedAndEvenly) {
  constexpr std::int64_t kRows = 1000;
  for (const double p : {0.1, 0.5, 0.9}) {
    const Dropout dropout(p, 11);
    EXPECT_EQ(dropout.factor, static_cast<float>(1.0 / (1.0 - p)));
    double kept = 0.0;
    double next_key = 0.0;
    double next_query = 0.0;
    double next_head = 0.0;
    double most_of_row = 0.0;
    std::vector<double> columns(kRows);
    for (std::int64_t i = 0; i < kRows; ++i) {
      double row = 0.0;
      for (std::int64_t j = 0; j < kRows; ++j) {
        const auto keeps = [&](std::int64_t h, std::int64_t query, std::int64_t key) {
          return dropout.Of(dropout.Row(0, h, query), key) != 0.0F ? p : p - 1.0;
        };
        const double here = keeps(0, i, j);  // of mean 0 and variance p (1 - p)
        row += here;
        columns[static_cast<std::size_t>(j)] += here;
        next_key += here * keeps(0, i, j + 1);
        next_query += here * keeps(0, i + 1, j);
        next_head += here * keeps(1, i, j);
      }
      kept += row;
      most_of_row = std::max(most_of_row, std::abs(row));
    }
    const double variance = p * (1.0 - p);
    // Five standard deviations of sums of a million; of a thousand rows or columns, six.
    EXPECT_LT(std::abs(kept), 5.0 * std::sqrt(variance) * kRows);
    for (const double product : {next_key, next_query, next_head}) {
      EXPECT_LT(std::abs(product), 5.0 * variance * kRows);
    }
    EXPECT_LT(most_of_row, 6.0 * std::sqrt(variance * kRows));
    for (const double column : columns) {
      EXPECT_LT(std::abs(column), 6.0 * std::sqrt(variance * kRows));
    }
  }
}

TEST(Dropout, RowsThatShareAWordDoNotShareTheirPattern) {
  // The second word tells rows apart whose first ones lie on each other's steps.
  const Dropout dropout(0.5, 1);
  const DropoutRow row{123U, 456U};
  const DropoutRow shifted{123U + Dropout::kStep, 789U};
  double product = 0.0;
  for (std::int64_t j = 0; j < 10000; ++j) {
    product += (dropout.Of(row, j + 1) - 1.0) * (dropout.Of(shifted, j) - 1.0);
  }
  EXPECT_LT(std::abs(product), 5.0 * 100.0);
}

TEST(Dropout, AutoTakesDense) {
  Random random(324);
  Call call({1, 1, 1, kAutoRows, kAutoRows, 2, 2});
  call.FillNormal(random);
  EXPECT_EQ(PlanOf(call).method, Method::kTree);
  call.options.dropout_p = 0.1;
  const PlanParts plan = PlanOf(call);
  EXPECT_EQ(plan.method, Method::kDense);
  EXPECT_EQ(plan.reason, "auto: dense because of dropout_p");
}

TEST(Dropout, Errors) {
  Call call({1, 1, 1, 3, 3, 2, 2});
  const auto expect = [&](ErrorKind kind, const std::string& part) {
    try {
      Attend(call);
      ADD_FAILURE() << "no error: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind);
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  for (const double p : {-0.1, 1.0001, 2.0, kNaN, kInfinity}) {
    call.options.dropout_p = p;
    expect(ErrorKind::kValue, "dropout_p: got ");
  }
  call.options.dropout_p = 0.1;
  call.options.method = Method::kTree;
  expect(ErrorKind::kUnsupported, "dropout_p: got 0.1, but method tree");
  call.options.dropout_p = 0.0;
  const PlanParts plan = PlanOf(call);
  call.options.dropout_p = 0.1;
  EXPECT_THROW(Attend(call, &plan), Error);
  // Without dropout a seed is no dial of dense.
  call.options = {};
  call.options.method = Method::kDense;
  call.options.seed = 1;
  expect(ErrorKind::kValue, "seed: ");
}

}  // namespace
}  // namespace smyrf::testing
