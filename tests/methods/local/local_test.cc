// Exact and hostile: a method of one's own whose plan has heads, and whose dial `lsh` has too.
#include "methods/local/local.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "testing/bounds.h"
#include "testing/gradients.h"
#include "testing/refused.h"

namespace smyrf::testing {
namespace {

struct Case {
  const char* name;
  Shape shape;
  std::optional<std::int64_t> cluster_size{};
  DType dtype = DType::kFloat32;
  bool is_padded = false;
  double dropout_p = 0.0;
};

const Case kCases[] = {
    {"plain", {2, 4, 2, 90, 90, 16, 16}, 16},
    {"its own default", {1, 2, 2, 400, 400, 8, 8}},
    {"fewer queries", {1, 2, 1, 3, 300, 8, 12}, 32},
    {"more queries", {1, 2, 1, 90, 30, 8, 12}, 5},
    {"one block", {1, 2, 2, 20, 20, 8, 8}, 64, DType::kFloat16},
    {"padded", {2, 2, 1, 70, 80, 8, 8}, 9, DType::kFloat32, true},
    {"dropout", {1, 2, 2, 60, 60, 8, 8}, 8, DType::kBFloat16, false, 0.25},
    {"no keys", {1, 2, 2, 5, 0, 8, 8}, 8},
};

Call CallOf(const Case& c) {
  Random random(1);
  Call call(c.shape, c.dtype);
  call.FillNormal(random);
  call.options.method = kLocal;
  call.options.cluster_size = c.cluster_size;
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

/// The call of `dense` whose attn_mask allows the blocks' pairs, from the method's definition: the
/// valid queries and keys of a batch entry, each cut into so many parts, meet where parts are
/// neighbours.
Call Dense(Call call) {
  const Shape& s = call.shape;
  const std::int64_t size = call.options.cluster_size.value_or(kDefaultBlock);
  call.options.method = Method::kDense;
  call.options.cluster_size.reset();
  call.attn_mask.emplace(DType::kBool, Tensor::Index{s.batch, 1, s.queries, s.keys});
  for (std::int64_t b = 0; b < s.batch; ++b) {
    std::int64_t queries = 0;
    std::int64_t keys = 0;
    for (std::int64_t i = 0; i < s.queries; ++i) queries += call.IsValidQuery(b, i) ? 1 : 0;
    for (std::int64_t j = 0; j < s.keys; ++j) keys += call.IsValidKey(b, j) ? 1 : 0;
    const std::int64_t parts = std::max<std::int64_t>(1, std::min({keys / size, queries, keys}));
    // The part c with c n / parts <= rank < (c + 1) n / parts, rounded down.
    const auto part = [&](std::int64_t rank, std::int64_t n) {
      std::int64_t c = 0;
      while ((c + 1) * n / parts <= rank) ++c;
      return c;
    };
    std::int64_t query_rank = 0;
    for (std::int64_t i = 0; i < s.queries; ++i) {
      std::int64_t key_rank = 0;
      for (std::int64_t j = 0; j < s.keys; ++j) {
        const bool valid = call.IsValidQuery(b, i) && call.IsValidKey(b, j);
        const bool near = valid && std::abs(part(query_rank, queries) - part(key_rank, keys)) <= 1;
        call.attn_mask->set(b, 0, i, j, near ? 1.0 : 0.0);
        key_rank += call.IsValidKey(b, j) ? 1 : 0;
      }
      query_rank += call.IsValidQuery(b, i) ? 1 : 0;
    }
  }
  return call;
}

/// Pairs of the blocks over pairs of valid rows.
double Density(const Call& call, std::int64_t b) {
  const Call dense = Dense(call);
  double near = 0.0;
  double valid = 0.0;
  for (std::int64_t i = 0; i < call.shape.queries; ++i) {
    for (std::int64_t j = 0; j < call.shape.keys; ++j) {
      near += dense.Allowed(b, 0, i, j) ? 1.0 : 0.0;
      valid += call.Allowed(b, 0, i, j) ? 1.0 : 0.0;
    }
  }
  return valid > 0.0 ? near / valid : 1.0;
}

void ExpectDensity(const Call& call, const Statistics& statistics, const Plan& made) {
  EXPECT_EQ(statistics.method, kLocal);
  ASSERT_EQ(std::ssize(statistics.heads), call.shape.batch * call.shape.query_heads);
  for (std::int64_t b = 0; b < call.shape.batch; ++b) {
    for (std::int64_t h = 0; h < call.shape.query_heads; ++h) {
      const auto& head = statistics.heads[static_cast<std::size_t>(b * call.shape.query_heads + h)];
      EXPECT_DOUBLE_EQ(head.density, Density(call, b));
      EXPECT_DOUBLE_EQ(made.density(b, h), Density(call, b));
    }
  }
}

class LocalCalls : public ::testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Cases, LocalCalls, ::testing::ValuesIn(kCases), [](const auto& given) {
  std::string name = given.param.name;
  std::erase(name, ' ');
  return name;
});

TEST_P(LocalCalls, AreDenseAttentionOfNeighbours) {
  Call call = CallOf(GetParam());
  const Call dense = Dense(call);
  Plan kept;
  const Result result = Attend(call, nullptr, Layout::kContiguous, &kept);
  EXPECT_TRUE(Close(dense, result, RunReference(dense), 2.0));
  EXPECT_TRUE(Close(dense, result, RunReference(call), 2.0));
  ExpectDensity(call, result.statistics, kept);
  for (const int threads : {1, 3}) {
    call.options.num_threads = threads;
    EXPECT_TRUE(Attend(call).SameBits(result));
  }
}

TEST_P(LocalCalls, HaveItsGradients) {
  const Call call = CallOf(GetParam());
  const Call dense = Dense(call);
  Random random(2);
  const Upstream upstream = RandomUpstream(random, call, true);
  const Result result = Attend(call);
  const Plan made = plan(call.arguments(), call.options);
  const GradientTensors gradients = Backward(call, result, upstream);
  EXPECT_TRUE(CloseGradients(dense, gradients, ReferenceBackward(dense, upstream), upstream));
  EXPECT_TRUE(gradients.SameBits(Backward(call, result, upstream, &made)));
}

TEST_P(LocalCalls, CanBePlannedAndThePlanSaved) {
  Call call = CallOf(GetParam());
  const Plan made = plan(call.arguments(), call.options);
  Plan kept;
  const Result result = Attend(call, nullptr, Layout::kContiguous, &kept);
  EXPECT_EQ(made.to_bytes(), kept.to_bytes());
  const Plan loaded = Plan::from_bytes(made.to_bytes());
  EXPECT_EQ(loaded.to_bytes(), made.to_bytes());
  EXPECT_EQ(loaded.info().method, kLocal);
  EXPECT_EQ(loaded.info().cluster_size, GetParam().cluster_size.value_or(kDefaultBlock));
  call.options.cluster_size.reset();  // the plan's holds
  EXPECT_TRUE(result.SameBits(Attend(call, &loaded)));
  EXPECT_TRUE(Close(Dense(CallOf(GetParam())), result, RunReference(call, &loaded), 2.0));
}

TEST_P(LocalCalls, CanBeEstimated) {
  const Call call = CallOf(GetParam());
  ExpectDensity(call, estimate(call.arguments(), call.options),
                plan(call.arguments(), call.options));
}

TEST(Local, HasADefaultAndARangeOfItsOwn) {
  const auto dial_of = [](Method method) {
    for (const MethodInfo* info : methods()) {
      if (info->method == method) return info->Find(kClusterSizeOption);
    }
    return static_cast<const Dial*>(nullptr);
  };
  const Dial* own = dial_of(kLocal);
  const Dial* other = dial_of(Method::kLsh);
  ASSERT_NE(own, nullptr);
  ASSERT_NE(other, nullptr);
  EXPECT_EQ(own->option, other->option);
  EXPECT_EQ(own->default_value, kDefaultBlock);
  EXPECT_EQ(other->default_value, kDefaultClusterSize);
  EXPECT_EQ(dial_of(Method::kTree), nullptr);

  Call call = CallOf(kCases[0]);
  const auto refused = [&](const std::string& message) {
    ExpectRefused(ErrorKind::kValue, message, [&] { Attend(call); });
    ExpectRefused(ErrorKind::kValue, message, [&] { plan(call.arguments(), call.options); });
    ExpectRefused(ErrorKind::kValue, message, [&] { estimate(call.arguments(), call.options); });
  };
  call.options.cluster_size = 3;
  refused("cluster_size: got 3, accepted are integers from 4 to 4096");
  call.options.cluster_size = 4097;
  refused("cluster_size: got 4097, accepted are integers from 4 to 4096");
  call.options.method = Method::kLsh;  // both of which it takes
  Attend(call);
  call.options.cluster_size = 3;
  Attend(call);
  call.options.cluster_size = 0;
  ExpectRefused(ErrorKind::kValue,
                "cluster_size: got 0, accepted are integers from 1 to 2147483647",
                [&] { Attend(call); });
}

TEST(Local, RefusesDialsThatItDoesNotHave) {
  Call call = CallOf(kCases[0]);
  call.options.tolerance = 0.1;
  ExpectRefused(ErrorKind::kValue, "tolerance: is a dial of method tree, but the method is local",
                [&] { Attend(call); });
  call.options = {.method = Method::kAuto, .enable_gqa = true, .cluster_size = 16};
  ExpectRefused(ErrorKind::kValue,
                "cluster_size: is a dial of methods lsh and local, but the method is auto; pass "
                "method='lsh' or method='local' or leave cluster_size out",
                [&] { Attend(call); });
}

TEST(Local, CallsWithAPlanAskForItsDial) {
  Call call = CallOf(kCases[0]);
  const Plan made = plan(call.arguments(), call.options);
  const auto refused = [&](const char* message) {
    ExpectRefused(ErrorKind::kValue, message, [&] { Attend(call, &made); });
  };
  Attend(call, &made);
  call.options.cluster_size = 17;
  refused("cluster_size: differs from the plan's");
  call.options.cluster_size = 3;
  refused("cluster_size: got 3, accepted are integers from 4 to 4096");
  call.options.cluster_size.reset();
  call.options.n_hashes = 2;
  refused("n_hashes: differs from the plan's");
  call.options.n_hashes.reset();
  call.options.method = Method::kAuto;  // takes the plan's
  Attend(call, &made);
  call.options.cluster_size = 17;
  refused("cluster_size: differs from the plan's");
  call.options.cluster_size = 16;
  Attend(call, &made);
  call.options.cluster_size.reset();
  call.options.method = Method::kLsh;
  refused("method: differs from the plan's");
}

TEST(Local, RefusesDamagedPlans) {
  const Call call = CallOf(kCases[0]);
  const Plan made = plan(call.arguments(), call.options);
  const auto refused = [&](const char* message, const std::function<void(PlanParts&)>& damage) {
    PlanParts parts = Unpack(made);
    damage(parts);
    ExpectRefused(ErrorKind::kValue, message,
                  [&] { Plan::from_bytes(Pack(std::move(parts)).to_bytes()); });
  };
  Plan::from_bytes(Pack(Unpack(made)).to_bytes());
  refused("a dial is out of range or none of the method's",
          [](PlanParts& parts) { parts.cluster_size = 3; });
  refused("a dial is out of range or none of the method's",
          [](PlanParts& parts) { parts.tolerance = 0.1; });
  refused("their number does not fit", [](PlanParts& parts) { parts.heads.pop_back(); });
  refused("query_order must hold each valid query once",
          [](PlanParts& parts) { parts.heads[1].query_order[0] = 90; });
  refused("key_order must hold each valid key once",
          [](PlanParts& parts) { parts.heads[1].key_order[0] = -1; });
  refused("a block needs keys", [](PlanParts& parts) { parts.heads[2].ranges[1].end = 91; });
  refused("a block has one range", [](PlanParts& parts) { ++parts.heads[3].blocks[0].last_range; });
  refused("the method marks none", [](PlanParts& parts) { parts.heads[0].dense = true; });
}

}  // namespace
}  // namespace smyrf::testing
