// Exact: `dense` against the float64 reference, within the bound of its arithmetic (bounds.h).
#include <gtest/gtest.h>

#include <cstdint>

#include "testing/bounds.h"
#include "testing/instruction_sets.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

/// Merges of one row: keys may be split once in 256 or more.
double Merges(const Call& call) { return static_cast<double>(call.shape.keys) / 256.0; }

void ExpectDense(const Call& call, Layout out_layout = Layout::kContiguous) {
  const Exact exact = RunReference(call);
  ForEachInstructionSet([&] {
    const Result result = Attend(call, nullptr, out_layout);
    ASSERT_TRUE(Close(call, result, exact, Merges(call)));
    ASSERT_TRUE(result.out.GapsUntouched()) << call;
    ASSERT_EQ(result.statistics.method, Method::kDense);
    for (const Statistics::Head& head : result.statistics.heads) ASSERT_EQ(head.density, 1.0);
  });
}

TEST(Dense, RandomCalls) {
  Random random(3);
  for (int n = 0; n < 400 && !::testing::Test::HasFatalFailure(); ++n) {
    SCOPED_TRACE(n);
    ExpectDense(RandomDenseCall(random, 4e5),
                random.Of({Layout::kContiguous, Layout::kBnhd, Layout::kGaps, Layout::kReversed,
                           Layout::kHeadsReversed}));
  }
}

TEST(Dense, EveryNumberOfQueriesUpToOneBlockAndMore) {
  Random random(4);
  for (std::int64_t queries = 1; queries <= 70 && !::testing::Test::HasFatalFailure(); ++queries) {
    Call call({1, 1, 1, queries, 37, 24, 24});
    call.FillNormal(random);
    call.options.is_causal = queries % 2 == 0;
    ExpectDense(call);
  }
}

TEST(Dense, EveryHeadDimensionUpTo70AndSomeBeyond) {
  Random random(5);
  for (std::int64_t depth = 1; depth <= 512 && !::testing::Test::HasFatalFailure();
       depth += depth < 70 ? 1 : 37) {
    for (const std::int64_t queries : {3, 20}) {
      Call call({1, 1, 1, queries, 21, depth, 513 - depth});
      call.FillNormal(random);
      ExpectDense(call);
    }
  }
  for (const std::int64_t depth : {512, 576, 2048}) {
    for (const std::int64_t queries : {1, 65}) {
      Call call({1, 1, 1, queries, 130, depth, depth == 576 ? 1023 : depth});
      call.FillNormal(random);
      ExpectDense(call);
    }
  }
}

TEST(Dense, EveryNumberOfKeysUpToTwoTilesAndMore) {
  Random random(6);
  for (std::int64_t keys = 1; keys <= 262 && !::testing::Test::HasFatalFailure(); ++keys) {
    Call call({1, 1, 1, keys % 3 == 0 ? 1 : 9, keys, 8, 5});
    call.FillNormal(random);
    if (keys % 5 == 0) call.options.window = Window{100, 3};
    ExpectDense(call);
  }
}

TEST(Dense, LongSequences) {
  Random random(7);
  for (const bool causal : {false, true}) {
    Call call({1, 2, 1, 700, 1111, 16, 16}, causal ? DType::kFloat16 : DType::kFloat32,
              Layout::kBnhd, Layout::kBnhd, Layout::kBnhd);
    call.FillNormal(random);
    call.options.is_causal = causal;
    call.options.num_threads = 2;
    ExpectDense(call, Layout::kBnhd);
  }
}

TEST(Dense, FewQueriesOverKeysThatAreSplit) {
  Random random(8);
  for (const std::int64_t queries : {1, 3, 64}) {
    for (const std::int64_t keys : {2048, 2049, 4097, 6500}) {
      Call call({1, 2, 1, queries, keys, 5, 3});
      call.FillNormal(random);
      // A cut that lets no query see the first part, and padding inside of the others.
      if (keys == 6500) call.options.window = Window{3000, 2};
      if (keys == 4097) {
        call.key_padding_mask = RandomPadding(random, 1, keys);
        call.key_padding_mask->FillRow(0, 0, 0, 1.0);
        for (std::int64_t j = 100; j < 3000; ++j) call.key_padding_mask->set(0, 0, 0, j, 0.0);
      }
      ExpectDense(call);
    }
  }
}

TEST(Dense, LargeLogits) {
  // One key takes all: weights of the others vanish, and the running maximum jumps by hundreds.
  Random random(9);
  for (const double deviation : {10.0, 100.0}) {
    Call call({1, 1, 1, 40, 300, 32, 16});
    call.FillNormal(random);
    call.query.FillNormal(random, deviation);
    ExpectDense(call);
    // Logits that grow along the keys move the maximum in every tile.
    for (std::int64_t j = 0; j < 300; ++j) {
      for (std::int64_t c = 0; c < 32; ++c) call.key.set(0, 0, j, c, 0.01 * static_cast<double>(j));
    }
    call.query.ForEach([&](auto b, auto h, auto i, auto c) {
      call.query.set(b, h, i, c, std::abs(call.query.at(b, h, i, c)));
    });
    ExpectDense(call);
  }
}

TEST(Dense, TinyAndHugeElements) {
  Random random(10);
  for (const double deviation : {1e-30, 1e-42}) {
    Call call({1, 1, 1, 20, 33, 16, 16});
    call.FillNormal(random);
    call.query.FillNormal(random, deviation);
    ExpectDense(call);
    call.value.FillNormal(random, deviation);
    const Exact exact = RunReference(call);
    const Result result = Attend(call);
    EXPECT_TRUE(Close(call, result, exact, 0.0));
  }
  Call call({1, 1, 1, 20, 33, 16, 16});
  call.FillNormal(random);
  call.value.FillNormal(random, 1e37);
  ExpectDense(call);
}

}  // namespace
}  // namespace smyrf::testing
