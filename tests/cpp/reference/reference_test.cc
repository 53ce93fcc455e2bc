// Exact: the float64 reference, which the other tests compare with, against attention spelled out
// here from the contract alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

TEST(Reference, IsAttentionAsTheContractSpellsIt) {
  Random random(1);
  for (int n = 0; n < 150; ++n) {
    const Call call = RandomDenseCall(random, 2e5);
    SCOPED_TRACE(::testing::Message() << "call " << n << ": " << call);
    const Exact exact = RunReference(call);
    const auto dv = static_cast<std::size_t>(call.shape.value_depth);
    double worst = 0.0;
    call.ForEachRow([&](auto b, auto h, auto i) {
      const std::int64_t g = call.KeyHead(h);
      std::vector<double> numerator(dv, 0.0);
      double sum = 0.0;
      double size = 0.0;
      for (std::int64_t j = 0; j < call.shape.keys; ++j) {
        if (!call.Allowed(b, h, i, j)) continue;
        double dot = 0.0;
        for (std::int64_t c = 0; c < call.shape.depth; ++c) {
          dot += call.query.at(b, h, i, c) * call.key.at(b, g, j, c);
        }
        // Logits of these calls are small enough for exp without its usual shift.
        const double weight = std::exp(call.scale() * dot + call.Bias(b, h, i, j));
        sum += weight;
        for (std::size_t c = 0; c < dv; ++c) {
          const double value = call.value.at(b, g, j, static_cast<std::int64_t>(c));
          numerator[c] += weight * value;
          size = std::max(size, std::abs(value));
        }
      }
      const std::size_t row = call.Row(b, h, i);
      if (sum == 0.0) {
        EXPECT_EQ(exact.lse[row], -kInfinity);
        for (std::size_t c = 0; c < dv; ++c) EXPECT_EQ(exact.out[row * dv + c], 0.0);
        return;
      }
      worst = std::max(worst, std::abs(exact.lse[row] - std::log(sum)));
      for (std::size_t c = 0; c < dv; ++c) {
        worst = std::max(worst, std::abs(exact.out[row * dv + c] - numerator[c] / sum) / size);
      }
    });
    // Logits up to 200 in size, so exponents are wrong by 200 * 2^-53 times a few roundings.
    ASSERT_LT(worst, 1e-12);
  }
}

TEST(Reference, LseIsOptional) {
  Random random(2);
  Call call({1, 2, 2, 3, 5, 4, 6});
  call.FillNormal(random);
  const Exact exact = RunReference(call);
  std::vector<double> out(exact.out.size());
  reference(call.arguments(), call.options, out.data(), nullptr);
  EXPECT_EQ(out, exact.out);
}

}  // namespace
}  // namespace smyrf::testing
