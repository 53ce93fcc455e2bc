// Hostile: NaN, infinities and any other bits in q, k and v, in rows that count and rows that
// don't.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "testing/bounds.h"
#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace smyrf::testing {
namespace {

/// Two batch entries, two key heads of two query heads each, the last rows of entry 1 padded.
Call PaddedCall(Random& random, Method method, DType dtype = DType::kFloat32) {
  Call call({2, 4, 2, 40, 150, 16, 8}, dtype);
  call.FillNormal(random);
  call.options.method = method;
  if (method == Method::kLsh) {
    call.options.n_hashes = 3;
    call.options.cluster_size = 15;
  }
  if (method == Method::kTree) {
    call.options.tolerance = 0.3;
    call.options.max_density = 0.6;  // or these small heads would be dense
  }
  call.query_padding_mask = Tensor(DType::kBool, {1, 1, 2, 40});
  call.key_padding_mask = Tensor(DType::kBool, {1, 1, 2, 150});
  call.query_padding_mask->ForEach([&](auto, auto, auto b, auto i) {
    call.query_padding_mask->set(0, 0, b, i, b == 1 && i >= 30 ? 0.0 : 1.0);
  });
  call.key_padding_mask->ForEach([&](auto, auto, auto b, auto j) {
    call.key_padding_mask->set(0, 0, b, j, b == 1 && j >= 70 ? 0.0 : 1.0);
  });
  return call;
}

constexpr double kStrange[] = {kNaN, kInfinity, -kInfinity};

/// Every row is either NaN as a whole (where `hit`) or has the clean call's bits. lse too.
void ExpectNaNExactlyWhere(
    const Call& call, const Result& result, const Result& clean,
    const std::function<bool(std::int64_t, std::int64_t, std::int64_t)>& hit) {
  call.ForEachRow([&](auto b, auto h, auto i) {
    const std::size_t row = call.Row(b, h, i);
    ASSERT_EQ(std::isnan(result.lse[row]), hit(b, h, i)) << b << " " << h << " " << i;
    if (!hit(b, h, i)) {
      ASSERT_EQ(result.lse[row], clean.lse[row]);
    }
    for (std::int64_t c = 0; c < call.shape.value_depth; ++c) {
      const double value = result.out.at(b, h, i, c);
      ASSERT_EQ(std::isnan(value), hit(b, h, i)) << b << " " << h << " " << b << h << i << " " << c;
      if (!hit(b, h, i)) {
        ASSERT_EQ(value, clean.out.at(b, h, i, c));
      }
    }
  });
}

TEST(NonFinite, PaddedRowsAreHarmless) {
  Random random(100);
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      const Call call = PaddedCall(random, method, dtype);
      for (const double value : kStrange) {
        Call poisoned = call;
        for (std::int64_t h = 0; h < 4; ++h) {
          for (std::int64_t i = 30; i < 40; ++i) poisoned.query.FillRow(1, h, i, value);
          for (std::int64_t j = 70; j < 150 && h < 2; ++j) {
            poisoned.key.FillRow(1, h, j, value);
            poisoned.value.FillRow(1, h, j, value);
          }
        }
        ForEachInstructionSet([&] {
          const Result result = Attend(poisoned);
          ASSERT_TRUE(result.SameBits(Attend(call)));
          for (const auto& head : result.statistics.heads) ASSERT_FALSE(head.non_finite);
        });
      }
    }
  }
}

#if defined(__SANITIZE_ADDRESS__)
TEST(NonFinite, PaddedRowsAreNeverLoaded) {
  Random random(101);
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    const Call call = PaddedCall(random, method);
    const Result expected = Attend(call);
    const auto poison = [&](const Tensor& tensor, std::int64_t first, bool on) {
      const TensorView view = tensor.view();
      for (std::int64_t h = 0; h < view.shape[1]; ++h) {
        const auto* rows = static_cast<const float*>(view.data) + view.strides[0] +
                           h * view.strides[1] + first * view.strides[2];
        const auto bytes = static_cast<std::size_t>(4 * (view.shape[2] - first) * view.strides[2]);
        if (on) {
          ASAN_POISON_MEMORY_REGION(rows, bytes);
        } else {
          ASAN_UNPOISON_MEMORY_REGION(rows, bytes);
        }
      }
    };
    for (const bool on : {true, false}) {
      poison(call.query, 30, on);
      poison(call.key, 70, on);
      poison(call.value, 70, on);
      if (on) ForEachInstructionSet([&] { (void)Attend(call); });
    }
    EXPECT_TRUE(Attend(call).SameBits(expected));
  }
}
#endif

TEST(NonFinite, DenseQueriesSpoilTheirOwnRowOnly) {
  Random random(102);
  for (const std::int64_t queries : {2, 40}) {
    for (const bool causal : {false, true}) {
      Call call({1, 2, 2, queries, 300, 16, 8});
      call.FillNormal(random);
      call.options.is_causal = causal;
      for (const double value : kStrange) {
        Call spoiled = call;
        spoiled.query.set(0, 1, 1, 7, value);
        ForEachInstructionSet([&] {
          ExpectNaNExactlyWhere(call, Attend(spoiled), Attend(call),
                                [](auto, auto h, auto i) { return h == 1 && i == 1; });
        });
      }
    }
  }
}

TEST(NonFinite, DenseKeysSpoilEveryRowThatSeesThem) {
  Random random(103);
  for (const std::int64_t queries : {2, 40}) {
    for (const std::int64_t at : {0, 140, 259}) {
      Call call({1, 2, 1, queries, 260, 16, 8});
      call.FillNormal(random);
      call.options.is_causal = true;
      Call spoiled = call;
      spoiled.key.set(0, 0, at, 3, kNaN);
      ForEachInstructionSet([&] {
        ExpectNaNExactlyWhere(call, Attend(spoiled), Attend(call),
                              [&](auto b, auto h, auto i) { return call.Allowed(b, h, i, at); });
      });
      // An infinite key gives logits of both signs: NaN, or a key that weighs nothing.
      spoiled.key.set(0, 0, at, 3, kInfinity);
      const Exact exact = RunReference(spoiled);
      ForEachInstructionSet([&] { ASSERT_TRUE(Close(spoiled, Attend(spoiled), exact, 2.0)); });
    }
  }
}

TEST(NonFinite, DenseValuesSpoilTheirColumnOfEveryRowThatMeetsThem) {
  Random random(104);
  for (const double value : kStrange) {
    for (const std::int64_t queries : {2, 40}) {
      for (const std::int64_t at : {5, 140}) {
        Call call({1, 2, 1, queries, 260, 16, 8});
        call.FillNormal(random);
        Call spoiled = call;
        spoiled.value.set(0, 0, at, 3, value);
        ForEachInstructionSet([&] {
          const Result clean = Attend(call);
          const Result result = Attend(spoiled);
          ASSERT_EQ(result.lse, clean.lse);
          result.out.ForEach([&](auto b, auto h, auto i, auto c) {
            const double got = result.out.at(b, h, i, c);
            if (c != 3) {
              ASSERT_EQ(got, clean.out.at(b, h, i, c));
            } else if (std::isnan(value)) {
              ASSERT_TRUE(std::isnan(got));
            } else {
              ASSERT_EQ(got, value);  // weights of these logits are above 0
            }
          });
        });
      }
    }
  }
}

TEST(NonFinite, DenseValuesSpoilRowsOfSplitKeys) {
  // Where a query's keys are split, a NaN value arrives from any part, even one of vanishing
  // weight.
  Random random(105);
  for (const std::int64_t at : {10, 5000}) {
    Call call({1, 1, 1, 2, 6000, 8, 3});
    call.FillNormal(random);
    for (std::int64_t c = 0; c < 8; ++c) {
      for (std::int64_t j = 0; j < 6000; ++j) {
        // Logits near +-1000 in one half, near 0 in the other.
        call.key.set(0, 0, j, c, j < 3000 ? 0.0 : (at == 10 ? 1.0 : -1.0));
      }
      for (std::int64_t i = 0; i < 2; ++i) call.query.set(0, 0, i, c, 400.0);
    }
    call.value.set(0, 0, at, 1, kNaN);
    ForEachInstructionSet([&] {
      const Result result = Attend(call);
      result.out.ForEach([&](auto b, auto h, auto i, auto c) {
        ASSERT_EQ(std::isnan(result.out.at(b, h, i, c)), c == 1) << b << h << i << " " << c;
      });
    });
  }
}

TEST(NonFinite, AllLogitsMinusInfinityIsNaN) {
  // The row sees keys, so its sum of 0 must not be taken for a row that sees none: as in PyTorch.
  for (const std::int64_t queries : {1, 20}) {
    Call call({1, 1, 1, queries, 30, 4, 3});
    call.query.ForEach([&](auto... at) { call.query.set(at..., -1.0); });
    call.key.ForEach([&](auto... at) { call.key.set(at..., kInfinity); });
    call.value.ForEach([&](auto... at) { call.value.set(at..., 1.0); });
    const Exact exact = RunReference(call);
    ForEachInstructionSet([&] {
      const Result result = Attend(call);
      result.out.ForEach([&](auto... at) { ASSERT_TRUE(std::isnan(result.out.at(at...))); });
      for (std::size_t row = 0; row < call.rows(); ++row) {
        ASSERT_TRUE(std::isnan(exact.out[row]));
        ASSERT_EQ(result.lse[row], -kInfinity);
        ASSERT_EQ(exact.lse[row], -kInfinity);
      }
    });
  }
}

TEST(NonFinite, LshQueriesAndKeysSpoilTheirHeadsAndStatisticsSaySo) {
  Random random(106);
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const std::int64_t rounds : {1, 3}) {
      Call call = PaddedCall(random, Method::kLsh, dtype);
      call.options.n_hashes = rounds;
      for (const double value : kStrange) {
        Call query = call;
        query.query.set(1, 2, 29, 15, value);
        Call key = call;
        key.key.set(1, 0, 69, 0, value);
        ForEachInstructionSet([&] {
          const Result clean = Attend(call);
          const Result of_query = Attend(query);
          ExpectNaNExactlyWhere(call, of_query, clean, [](auto b, auto h, auto i) {
            return b == 1 && h == 2 && i < 30;  // padded queries stay 0
          });
          const Result of_key = Attend(key);
          ExpectNaNExactlyWhere(call, of_key, clean,
                                [](auto b, auto h, auto i) { return b == 1 && h < 2 && i < 30; });
          for (std::size_t n = 0; n < 8; ++n) {
            ASSERT_EQ(of_query.statistics.heads[n].non_finite, n == 6);
            ASSERT_EQ(of_key.statistics.heads[n].non_finite, n == 4 || n == 5);
          }
        });
        EXPECT_TRUE(Close(query, Attend(query), RunReference(query), 3.0));
        EXPECT_TRUE(Close(key, Attend(key), RunReference(key), 3.0));
      }
    }
  }
}

TEST(NonFinite, LshValuesSpoilTheRowsThatMeetThem) {
  Random random(107);
  const Call call = PaddedCall(random, Method::kLsh);
  Call spoiled = call;
  spoiled.value.set(0, 1, 77, 3, kNaN);
  const PlanParts made = PlanOf(call);
  const auto meets = [&](std::int64_t h, std::int64_t i) {
    for (std::int64_t round = 0; round < made.rounds(); ++round) {
      const HeadPlan& head = made.head(round, 0, h);
      for (const QueryBlock& block : head.blocks) {
        bool has_query = false;
        for (std::int32_t r = block.begin; r < block.end; ++r) {
          has_query = has_query || head.query_order[static_cast<std::size_t>(r)] == i;
        }
        const KeyRange& range = head.ranges[block.first_range];
        for (std::int32_t r = range.begin; r < range.end && has_query; ++r) {
          if (head.key_order[static_cast<std::size_t>(r)] == 77) return true;
        }
      }
    }
    return false;
  };
  int rows_hit = 0;
  ForEachInstructionSet([&] {
    const Result clean = Attend(call, &made);
    const Result result = Attend(spoiled, &made);
    ASSERT_EQ(result.lse, clean.lse);
    result.out.ForEach([&](auto b, auto h, auto i, auto c) {
      const bool hit = b == 0 && h >= 2 && c == 3 && meets(h, i);
      rows_hit += hit ? 1 : 0;
      ASSERT_EQ(std::isnan(result.out.at(b, h, i, c)), hit);
      if (!hit) {
        ASSERT_EQ(result.out.at(b, h, i, c), clean.out.at(b, h, i, c));
      }
    });
    for (const auto& head : result.statistics.heads) ASSERT_FALSE(head.non_finite);
  });
  EXPECT_GT(rows_hit, 0);
}

TEST(NonFinite, TreeQueriesAndKeysSpoilTheirHeadsAndStatisticsSaySo) {
  Random random(109);
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    Call call = PaddedCall(random, Method::kTree, dtype);
    for (const double value : kStrange) {
      Call query = call;
      query.query.set(1, 2, 29, 15, value);
      Call key = call;
      key.key.set(1, 0, 69, 0, value);
      ForEachInstructionSet([&] {
        const Result clean = Attend(call);
        for (const auto& head : clean.statistics.heads) ASSERT_FALSE(head.dense);
        const Result of_key = Attend(key);
        ExpectNaNExactlyWhere(call, of_key, clean,
                              [](auto b, auto h, auto i) { return b == 1 && h < 2 && i < 30; });
        // Heads 2 and 3 share keys, whose basis is that of the finite queries: head 3 may change.
        const Result of_query = Attend(query);
        call.ForEachRow([&](auto b, auto h, auto i) {
          const bool hit = b == 1 && h == 2 && i < 30;
          const std::size_t row = call.Row(b, h, i);
          ASSERT_EQ(std::isnan(of_query.lse[row]), hit) << b << " " << h << " " << i;
          if (!hit && !(b == 1 && h == 3)) {
            ASSERT_EQ(of_query.lse[row], clean.lse[row]);
          }
          for (std::int64_t c = 0; c < call.shape.value_depth; ++c) {
            ASSERT_EQ(std::isnan(of_query.out.at(b, h, i, c)), hit) << b << " " << h << " " << i;
          }
        });
        for (std::size_t n = 0; n < 8; ++n) {
          ASSERT_EQ(of_query.statistics.heads[n].non_finite, n == 6);
          ASSERT_EQ(of_key.statistics.heads[n].non_finite, n == 4 || n == 5);
          ASSERT_EQ(of_query.statistics.heads[n].density == 0.0, n == 6);
        }
        // A stored plan says the same.
        for (const Call* spoiled : {&query, &key}) {
          const PlanParts made = PlanOf(*spoiled);
          const Result planned = Attend(*spoiled, &made);
          const Result direct = Attend(*spoiled);
          for (std::size_t row = 0; row < call.rows(); ++row) {
            ASSERT_EQ(std::isnan(planned.lse[row]), std::isnan(direct.lse[row]));
          }
          for (std::size_t n = 0; n < 8; ++n) {
            ASSERT_EQ(planned.statistics.heads[n].non_finite,
                      direct.statistics.heads[n].non_finite);
          }
        }
      });
    }
  }
}

TEST(NonFinite, TreeValuesSpoilTheirColumnOfTheirHeads) {
  // A value takes part in no order, and every query meets every key: as in dense attention.
  Random random(110);
  for (const bool capped : {false, true}) {
    Call call = PaddedCall(random, Method::kTree);
    if (!capped) call.options.max_density.reset();
    for (const double value : kStrange) {
      Call spoiled = call;
      spoiled.value.set(0, 1, 77, 3, value);
      ForEachInstructionSet([&] {
        const Result clean = Attend(call);
        const Result result = Attend(spoiled);
        result.out.ForEach([&](auto b, auto h, auto i, auto c) {
          const double got = result.out.at(b, h, i, c);
          if (b == 0 && h >= 2) {
            ASSERT_EQ(std::isfinite(got), c != 3) << h << " " << i << " " << c << ": " << call;
          } else {
            ASSERT_EQ(got, clean.out.at(b, h, i, c));
          }
        });
        for (const float lse : result.lse) ASSERT_FALSE(std::isnan(lse));
        for (const auto& head : result.statistics.heads) ASSERT_FALSE(head.non_finite);
      });
    }
  }
}

TEST(NonFinite, TreeTakesQueriesAndKeysOfAnySizeAsDenseDoes) {
  // Finite rows whose logits, shares and variances overflow.
  for (const double factor : {1e15, 1e18, 2.5e18, 5e18, 1e19, 1e25, 1e31, 3e37}) {
    for (std::uint64_t n = 0; n < 6; ++n) {
      Random random(300 + n % 3);
      Call call({1, 2, 1, 200, 400, 16, 8});
      call.options.num_threads = 1;
      n < 3 ? FillSmooth(random, call) : call.FillNormal(random);
      for (const bool of_keys : {false, true}) {
        Tensor& rows = of_keys ? call.key : call.query;
        if (n % 3 == (of_keys ? 0 : 1) && factor > 1e19) continue;
        rows.ForEach([&](auto... at) { rows.set(at..., factor * rows.at(at...)); });
      }
      call.options.method = Method::kDense;
      const Result dense = Attend(call);
      call.options.method = Method::kTree;
      call.options.seed = n % 3;
      for (const bool capped : {false, true}) {
        if (capped) call.options.max_density = 0.3;
        const Result result = Attend(call);
        double error = 0.0;
        double size = 0.0;
        result.out.ForEach([&](auto... at) {
          const double got = result.out.at(at...);
          const double expected = dense.out.at(at...);
          ASSERT_EQ(std::isnan(got), std::isnan(expected)) << factor << " " << n << ": " << call;
          if (std::isnan(got)) return;
          error += (got - expected) * (got - expected);
          size += expected * expected;
        });
        if (!capped) {
          EXPECT_LE(error, 0.075 * 0.075 * size) << factor << " " << n << ": " << call;
        }
        call.options.num_threads = 3;
        EXPECT_TRUE(Attend(call).SameBits(result)) << call;
        call.options.num_threads = 1;
      }
    }
  }
}

TEST(NonFinite, AnyBitsAtAllComeToAnEnd) {
  Random random(108);
  for (int n = 0; n < 300; ++n) {
    Call call = n % 3 == 0   ? RandomDenseCall(random, 5e4)
                : n % 3 == 1 ? RandomLshCall(random, 5e4)
                             : RandomTreeCall(random, 5e4);
    // Any bits in queries or keys end the planning of `tree` early: values alone go further.
    const bool values_only = call.options.method == Method::kTree && random.Chance(0.5);
    for (Tensor* tensor : {&call.query, &call.key, &call.value}) {
      if (values_only && tensor != &call.value) continue;
      const MutableTensorView view = tensor->mutable_view();
      tensor->ForEach([&](auto b, auto h, auto i, auto c) {
        if (!random.Chance(0.5)) return;
        const std::int64_t at = b * view.strides[0] + h * view.strides[1] + i * view.strides[2] + c;
        const auto bits = static_cast<std::uint32_t>(random.Below(std::int64_t{1} << 32));
        std::memcpy(static_cast<std::byte*>(view.data) + at * SizeOf(view.dtype), &bits,
                    static_cast<std::size_t>(SizeOf(view.dtype)));
      });
    }
    const Result result = Attend(call);
    ASSERT_TRUE(result.SameBits(Attend(call))) << call;
    call.ForEachRow([&](auto b, auto h, auto i) {
      if (!call.SeesNothing(b, h, i)) return;
      ASSERT_EQ(result.lse[call.Row(b, h, i)], -kInfinity) << call;
      for (std::int64_t c = 0; c < call.shape.value_depth; ++c) {
        ASSERT_EQ(result.out.at(b, h, i, c), 0.0) << call;
      }
    });
  }
}

}  // namespace
}  // namespace smyrf::testing
