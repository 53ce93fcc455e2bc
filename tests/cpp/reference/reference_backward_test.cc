// Exact: the reference's gradients, which the executors are compared with, against central finite
// differences of the reference itself, under a plan that is held constant.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "testing/gradients.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

/// sum of out * grad_out and of lse * grad_lse over the queries that see a key.
double Loss(const Call& call, const Upstream& upstream, const PlanParts& plan) {
  const Exact exact = RunReference(call, &plan);
  const auto dv = static_cast<std::size_t>(call.shape.value_depth);
  double sum = 0.0;
  call.ForEachRow([&](auto b, auto h, auto i) {
    const std::size_t row = call.Row(b, h, i);
    if (exact.lse[row] == -kInfinity) return;
    if (!upstream.lse.empty()) sum += exact.lse[row] * upstream.lse[row];
    for (std::size_t c = 0; c < dv; ++c) {
      sum += exact.out[row * dv + c] * upstream.out.at(b, h, i, static_cast<std::int64_t>(c));
    }
  });
  return sum;
}

/// The derivative along random directions and along single elements, for query, key and value.
void ExpectDifferences(Random& random, Call call, bool with_lse) {
  const PlanParts plan = PlanOf(call);
  const Upstream upstream = RandomUpstream(random, call, with_lse);
  const ExactGradients exact = ReferenceBackward(call, upstream, &plan);
  const auto check = [&](const char* name, Tensor& tensor, const std::vector<double>& gradient) {
    for (int n = 0; n < 12; ++n) {
      const Tensor before = tensor;
      const auto elements = static_cast<std::int64_t>(gradient.size());
      const std::int64_t only = n % 2 == 0 ? random.Below(elements) : -1;
      std::vector<double> direction(gradient.size());
      for (std::int64_t at = 0; at < elements; ++at) {
        direction[static_cast<std::size_t>(at)] =
            only < 0 ? 1e-3 * random.Normal() : (at == only ? 4e-3 : 0.0);
      }
      const auto move = [&](double sign) {
        Tensor moved = before;
        std::size_t at = 0;
        before.ForEach([&](auto... index) {
          moved.set(index...,
                    Rounded(before.at(index...) + sign * direction[at++], DType::kFloat32));
        });
        tensor = std::move(moved);
        return Loss(call, upstream, plan);
      };
      const double difference = move(1.0) - move(-1.0);
      Tensor low = tensor;
      move(1.0);
      // Elements moved by what float32 made of the direction.
      double expected = 0.0;
      double size = 0.0;
      std::size_t at = 0;
      before.ForEach([&](auto... index) {
        const double step = tensor.at(index...) - low.at(index...);
        expected += step * gradient[at];
        size += std::abs(step) * std::abs(gradient[at++]);
      });
      tensor = before;
      ASSERT_NEAR(difference, expected, 2e-4 * size + 1e-9) << name << " " << n << ": " << call;
    }
  };
  check("query", call.query, exact.query);
  check("key", call.key, exact.key);
  check("value", call.value, exact.value);
}

TEST(ReferenceBackward, DenseIsTheDerivative) {
  Random random(310);
  for (int n = 0; n < 8 && !::testing::Test::HasFatalFailure(); ++n) {
    Call call({2, 4, 2, 5, 7, 3, 6});
    call.FillNormal(random);
    call.options.method = Method::kDense;
    call.options.is_causal = n % 2 == 1;
    if (n % 4 >= 2) AddRandomMask(random, call);
    if (n >= 4) call.key_padding_mask = RandomPadding(random, 2, 7);
    if (n >= 4) call.query_padding_mask = RandomPadding(random, 2, 5);
    if (n >= 6) call.options.dropout_p = 0.3;
    ExpectDifferences(random, call, n % 2 == 0);
  }
}

TEST(ReferenceBackward, LshIsTheDerivative) {
  Random random(311);
  for (int n = 0; n < 4 && !::testing::Test::HasFatalFailure(); ++n) {
    Call call({1, 4, 2, 12, 17, 4, 3});
    call.FillNormal(random);
    call.options.method = Method::kLsh;
    call.options.n_hashes = 3;
    call.options.cluster_size = 4;
    call.options.dropout_p = n >= 2 ? 0.4 : 0.0;
    if (n % 2 == 1) call.key_padding_mask = RandomPadding(random, 1, 17);
    ExpectDifferences(random, call, n % 2 == 0);
  }
}

TEST(ReferenceBackward, TreeIsTheDerivative) {
  Random random(312);
  int closed = 0;
  for (int n = 0; n < 4 && !::testing::Test::HasFatalFailure(); ++n) {
    Call call({1, 2, 1, 33, 180, n % 2 == 0 ? 6 : 40, 3});
    call.query.FillNormal(random, n < 2 ? 1.0 : 4.0);  // wide nodes: u above 2 ln n
    call.key.FillNormal(random);
    call.value.FillNormal(random);
    call.options.method = Method::kTree;
    call.options.tolerance = 0.9;
    call.options.max_density = 0.4;
    if (n == 1) call.query_padding_mask = RandomPadding(random, 1, 33);
    for (const HeadPlan& head : PlanOf(call).heads) closed += head.nodes.empty() ? 0 : 1;
    ExpectDifferences(random, call, n % 2 == 0);
  }
  EXPECT_GE(closed, 4);
}

}  // namespace
}  // namespace smyrf::testing
