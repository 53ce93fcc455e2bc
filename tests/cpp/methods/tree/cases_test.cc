// `tree` where statistics, bases and trees degenerate: each case meets the tolerance.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "testing/plan_rows.h"
#include "testing/tree_call.h"

namespace smyrf::testing {
namespace {

// Approximate: out and lse against float64 dense attention.

/// As the call is, and where heads are done as nodes although dense might be cheaper.
void ExpectToleranceOfNodesToo(Call call) {
  (void)ExpectTolerance(call);
  call.options.max_density = 1.0;
  EXPECT_EQ(ExpectTolerance(call), call.shape.query_heads) << call;
}

TEST(TreeDegenerate, RowsThatAreAllTheSame) {
  Random random(150);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const bool same_queries : {false, true}) {
      for (const bool same_keys : {false, true}) {
        for (const double size : {0.0, 1.0}) {
          Call call = TreeCall({1, 1, 1, 130, 520, 16, 8}, 0.05, dtype);
          call.FillNormal(random);
          call.query.ForEach([&](auto b, auto h, auto i, auto c) {
            if (same_queries) call.query.set(b, h, i, c, size * call.query.at(0, 0, 0, c));
          });
          call.key.ForEach([&](auto b, auto h, auto i, auto c) {
            if (same_keys) call.key.set(b, h, i, c, size * call.key.at(0, 0, 0, c));
          });
          (void)ExpectTolerance(call);
          // Identical keys or zero queries leave nothing to open.
          if (same_keys || (same_queries && size == 0.0)) ExpectToleranceOfNodesToo(call);
          call.value.ForEach([&](auto... at) { call.value.set(at..., 2.5); });  // constant heads
          (void)ExpectTolerance(call);
        }
      }
    }
  }
}

TEST(TreeDegenerate, FewDistinctKeysAreSummarisedExactly) {
  Random random(151);
  Call call = TreeCall({1, 1, 1, 200, 1024, 16, 8}, 0.01);
  call.FillNormal(random);
  call.key.ForEach(
      [&](auto b, auto h, auto j, auto c) { call.key.set(b, h, j, c, call.key.at(0, 0, 0, c)); });
  EXPECT_EQ(ExpectTolerance(call), 1);
  // No logit varies inside a node: almost nothing is opened.
  EXPECT_LT(Attend(call).statistics.heads[0].density, 0.1);
}

TEST(TreeDegenerate, ValuesThatAreAllTheSame) {
  // Out is exact whatever the plan; lse still has to be found.
  Random random(152);
  for (const double value : {0.0, 1.0, -3.0}) {
    Call call = TreeCall({1, 1, 1, 200, 600, 16, 8}, 0.05);
    FillSmooth(random, call);
    call.value.ForEach([&](auto... at) { call.value.set(at..., value); });
    (void)ExpectTolerance(call);
    // Values of 0 have no size that a threshold could be a part of: dense.
    if (value != 0.0) ExpectToleranceOfNodesToo(call);
  }
}

TEST(TreeDegenerate, OneKeyDominates) {
  // Of 360 such heads two were more than 1.5 tolerances off in lse, and none of these.
  Random random(253);
  for (const double logit : {10.0, 40.0, 300.0}) {
    for (const std::int64_t at : {0, 333, 599}) {
      Call call = TreeCall({1, 1, 1, 200, 600, 16, 8}, 0.05);
      FillSmooth(random, call);
      for (std::int64_t i = 0; i < 200; ++i) call.query.set(0, 0, i, 0, 4.0);
      call.key.FillRow(0, 0, at, 0.0);
      call.key.set(0, 0, at, 0, logit);  // times 4 over sqrt(16)
      ExpectToleranceOfNodesToo(call);
    }
  }
}

TEST(TreeDegenerate, EachQuerySeesAKeyNextToItAndNoOther) {
  // Keys far from each other, at no one's side in any tree: only its position tells which one a
  // query sees. Queries are the last of the keys' positions.
  Random random(165);
  // Few queries miss their key, at which lse is off by nats, and sampled rows can miss those: one
  // seed in 16 is more than 1.5 tolerances off, and one in 190 takes more than .35 of the pairs. At
  // most one in 8, and one in 48, may be here.
  constexpr std::uint64_t kSeeds = 8;
  int off = 0;
  int costly = 0;
  for (const std::int64_t queries : {1200, 900}) {
    for (const std::int64_t away : {-3, 0, 4}) {
      Call call = TreeCall({1, 1, 1, queries, 1200, 32, 8}, 0.1);
      call.key.FillNormal(random, 1.0);
      call.value.FillNormal(random, 1.0);
      call.query.ForEach([&](auto b, auto h, auto i, auto c) {
        const auto at = std::clamp<std::int64_t>(i + 1200 - queries + away, 0, 1199);
        call.query.set(b, h, i, c, 4.0 * call.key.at(b, h, at, c));
      });
      const Exact dense = RunReference(AsDense(call));
      for (call.options.seed = 0; call.options.seed < kSeeds; ++call.options.seed) {
        const Result result = Attend(call);
        const auto& head = result.statistics.heads[0];
        EXPECT_FALSE(head.dense) << call;
        costly += head.density > 0.35 ? 1 : 0;
        const Errors errors = ErrorsOf(call, result, dense, 0, 0);
        EXPECT_LE(errors.out, 0.15) << call;
        off += errors.lse > 0.15 ? 1 : 0;
      }
    }
  }
  EXPECT_LE(off, 6);
  EXPECT_LE(costly, 1);
}

TEST(TreeDegenerate, ManyKeysHoldTheMassAndValuesAgree) {
  // More keys than sinks hold the mass, and values say nothing of where it lies: 64 of 512 keys,
  // anywhere, at logit 6 above the others.
  Random random(154);
  for (const double tolerance : {0.02, 0.05, 0.2}) {
    for (const bool zero : {false, true}) {
      Call call = TreeCall({1, 1, 1, 200, 512, 16, 8}, tolerance);
      call.query.FillNormal(random, 0.3);
      call.key.FillNormal(random, 0.3);
      for (std::int64_t i = 0; i < 200; ++i) call.query.set(0, 0, i, 0, 4.0);
      for (std::int64_t j = 0; j < 512; ++j) {
        call.key.set(0, 0, j, 0, (j * 193) % 512 < 64 ? 6.0 : 0.0);
      }
      call.value.ForEach([&](auto b, auto h, auto j, auto c) {
        call.value.set(b, h, j, c, zero ? 0.0 : 0.5 + static_cast<double>(c));
      });
      zero ? (void)ExpectTolerance(call) : ExpectToleranceOfNodesToo(call);
      // The same where a tree of keys alone can't set them apart: half of the queries see them.
      for (std::int64_t i = 0; i < 200; i += 2) call.query.set(0, 0, i, 0, 0.0);
      zero ? (void)ExpectTolerance(call) : ExpectToleranceOfNodesToo(call);
    }
  }
}

TEST(TreeDegenerate, FewerQueriesThanDimensions) {
  // Their second moment is singular.
  Random random(161);
  for (const std::int64_t queries : {1, 2, 16, 63}) {
    Call call = TreeCall({1, 2, 1, queries, 900, 64, 24}, 0.05);
    FillSmooth(random, call);
    ExpectToleranceOfNodesToo(call);
  }
}

TEST(TreeDegenerate, HeadsOfAGroupWhoseNormsDifferTenfold) {
  // One basis serves them, made for the larger.
  Random random(162);
  for (const double tolerance : {0.05, 0.2}) {
    Call call = TreeCall({1, 4, 2, 300, 900, 32, 24}, tolerance);
    FillSmooth(random, call);
    call.query.ForEach([&](auto b, auto h, auto i, auto c) {
      call.query.set(b, h, i, c, call.query.at(b, h, i, c) * (h % 2 == 0 ? 0.1 : 1.0));
    });
    ExpectToleranceOfNodesToo(call);
  }
}

TEST(TreeDegenerate, AsFewQueriesAsCalibrationTakesAreDense) {
  // One query sees a key that no other does: a sample would miss it.
  Random random(166);
  Call call = TreeCall({1, 1, 1, 128, 700, 16, 8}, 0.1);
  call.FillNormal(random);
  for (std::int64_t c = 0; c < 16; ++c) call.query.set(0, 0, 77, c, 20.0 * call.key.at(0, 0, 3, c));
  EXPECT_EQ(ExpectTolerance(call), 0);
  Call more = TreeCall({1, 1, 1, 129, 700, 16, 8}, 0.9);
  FillSmooth(random, more);
  EXPECT_EQ(ExpectTolerance(more), 1);
}

TEST(TreeDegenerate, FewRows) {
  Random random(155);
  for (const auto& [queries, keys, depth] : {std::tuple{1, 600, 16},
                                             {1, 64, 16},
                                             {5, 600, 64},
                                             {17, 300, 128},
                                             {100, 63, 16},
                                             {100, 64, 16},
                                             {100, 80, 16},
                                             {100, 81, 512},
                                             {3, 5, 4},
                                             {1, 1, 1},
                                             {200, 600, 1}}) {
    for (const double tolerance : {0.05, 0.5}) {
      Call call = TreeCall({1, 1, 1, queries, keys, depth, 8}, tolerance);
      call.FillNormal(random);
      (void)ExpectTolerance(call);
      FillSmooth(random, call);
      (void)ExpectTolerance(call);
    }
  }
}

TEST(TreeDegenerate, NoRows) {
  for (const auto& [queries, keys] : {std::pair{0, 5}, {5, 0}, {0, 0}, {200, 0}, {0, 200}}) {
    Random random(156);
    Call call = TreeCall({2, 2, 1, queries, keys, 8, 4}, 0.05);
    call.FillNormal(random);
    const PlanParts made = PlanOf(call);
    for (const PlanParts* given : {static_cast<const PlanParts*>(nullptr), &made}) {
      const Result result = Attend(call, given);
      result.out.ForEach([&](auto... at) { ASSERT_EQ(result.out.at(at...), 0.0); });
      for (const float lse : result.lse) ASSERT_EQ(lse, -kInfinity);
      for (const auto& head : result.statistics.heads) {
        ASSERT_FALSE(head.non_finite);
        ASSERT_EQ(head.density, 1.0);
      }
    }
  }
}

TEST(TreeDegenerate, HugeAndTinyElementsOfModerateLogits) {
  Random random(157);
  for (const auto& [of_query, of_key] : {std::pair{1e18, 1e18},
                                         {1e-18, 1e-18},
                                         {1e18, 1e-18},
                                         {1e-18, 1e18},
                                         {1e-30, 1.0},
                                         {1.0, 1e-30},
                                         {1e30, 1.0},
                                         {1.0, 1e30}}) {
    Call call = TreeCall({1, 2, 1, 200, 600, 16, 8}, 0.1);
    FillSmooth(random, call);
    const auto times = [](Tensor& tensor, double factor) {
      tensor.ForEach([&](auto... at) { tensor.set(at..., factor * tensor.at(at...)); });
    };
    times(call.query, of_query);
    times(call.key, of_key);
    call.options.scale = 0.25 / of_query / of_key;
    SCOPED_TRACE(::testing::Message() << "query times " << of_query << ", key times " << of_key);
    const int sparse = ExpectTolerance(call);
    // Size is no reason to go dense, but where coordinates of queries in a plane overflow.
    if (of_query * of_key < 1e30) {
      EXPECT_EQ(sparse, 2);
    }
  }
}

TEST(TreeDegenerate, SubnormalElements) {
  // No float32 number brings them to a size of 1, and every logit is 0.
  Random random(163);
  for (const double size : {1e-38, 2e-39, 1e-40, 1e-44}) {
    for (const bool keys : {false, true}) {
      Call call = TreeCall({1, 1, 1, 32, 75, 8, 4}, 0.05);
      call.FillNormal(random);
      Tensor& tiny = keys ? call.key : call.query;
      tiny.ForEach([&](auto... at) { tiny.set(at..., size * tiny.at(at...)); });
      call.options.max_density = 0.2;  // the roots would do
      EXPECT_EQ(ExpectTolerance(call), 1) << call;
    }
  }
}

TEST(TreeDegenerate, HugeAndTinyValues) {
  Random random(158);
  for (const double size : {1e-30, 1e-18, 1e15, 1e18, 1e30}) {
    Call call = TreeCall({1, 1, 1, 200, 600, 16, 8}, 0.1);
    FillSmooth(random, call);
    call.value.ForEach([&](auto... at) { call.value.set(at..., size * call.value.at(at...)); });
    SCOPED_TRACE(::testing::Message() << "value times " << size);
    (void)ExpectTolerance(call);
  }
}

TEST(TreeDegenerate, ValuesWhoseErrorsCannotBeMeasuredAreDense) {
  Random random(167);
  for (const double value : {std::nan(""), 1e-22, 2e37}) {
    Call call = TreeCall({1, 1, 1, 200, 600, 16, 8}, 0.1);
    FillSmooth(random, call);
    EXPECT_EQ(ExpectTolerance(call), 1);
    if (std::isnan(value)) {
      call.value.set(0, 0, 77, 3, value);
    } else {
      call.value.ForEach([&](auto... at) { call.value.set(at..., value * call.value.at(at...)); });
    }
    const Result result = Attend(call);
    EXPECT_TRUE(result.statistics.heads[0].dense) << value;
    EXPECT_TRUE(std::isfinite(result.out.at(0, 0, 5, 2))) << value;
  }
}

TEST(TreeDegenerate, RowsWhoseMeansOverflowAreDense) {
  Random random(171);
  for (const bool of_values : {false, true}) {
    Call call = TreeCall({1, 1, 1, 200, 3000, 16, 8}, 0.1);
    FillSmooth(random, call);
    call.options.max_density = 0.3;
    EXPECT_FALSE(Attend(call).statistics.heads[0].dense);
    if (of_values) {
      call.value.set(0, 0, 1, 3, 3e37);  // in a row that no sample of values holds
    } else {
      call.key.ForEach([&](auto... at) { call.key.set(at..., 1e36 * (5.0 + call.key.at(at...))); });
      call.options.scale = 0.25 / 1e36;
    }
    const Result result = Attend(call);
    EXPECT_TRUE(result.statistics.heads[0].dense);
    result.out.ForEach([&](auto... at) { ASSERT_TRUE(std::isfinite(result.out.at(at...))); });
  }
}

TEST(TreeDegenerate, HugeLogits) {
  Random random(159);
  for (const double scale : {10.0, 1e3, 1e6}) {
    Call call = TreeCall({1, 1, 1, 200, 600, 16, 8}, 0.1);
    FillSmooth(random, call);
    call.options.scale = scale;
    const Exact dense = RunReference(AsDense(call));
    const Result result = Attend(call);
    if (result.statistics.heads[0].dense) {
      EXPECT_TRUE(Close(call, result, dense, 0.0));
    } else {
      EXPECT_LE(ErrorsOf(call, result, dense, 0, 0).out, 0.1) << call;
    }
  }
}

TEST(TreeDegenerate, EqualKeysUnderScalesWhoseSquareOverflows) {
  Random random(165);
  for (const double scale : {1e18, 1e30, 1e37}) {
    Call call = TreeCall({1, 1, 1, 130, 520, 7, 8}, 0.05);
    call.FillNormal(random);
    call.key.ForEach([&](auto... at) { call.key.set(at..., 0.0); });
    call.options.scale = scale;
    for (const float lse : Attend(call).lse) ASSERT_NEAR(lse, std::log(520.0), 1e-5) << call;
    ExpectToleranceOfNodesToo(call);
  }
}

TEST(TreeDegenerate, ScalesOfZeroAndBelow) {
  Random random(160);
  for (const double scale : {0.0, -0.25}) {
    Call call = TreeCall({1, 1, 1, 200, 600, 16, 8}, 0.05);
    FillSmooth(random, call);
    call.options.scale = scale;
    (void)ExpectTolerance(call);
  }
}

}  // namespace
}  // namespace smyrf::testing
