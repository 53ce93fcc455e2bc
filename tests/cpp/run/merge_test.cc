// Exact: the public merge of (out, lse) over disjoint keys.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "smyrf/attention.h"
#include "testing/bounds.h"
#include "testing/instruction_sets.h"
#include "testing/tensor.h"

namespace smyrf::testing {
namespace {

/// (1, 1, rows, depth) and its lse.
struct Part {
  Tensor out;
  std::vector<float> lse;

  TensorView lse_view() const {
    return Contiguous<const void>(lse.data(), DType::kFloat32, {1, 1, std::ssize(lse)});
  }
};

Part RandomPart(Random& random, DType dtype, std::int64_t rows, std::int64_t depth, double mean,
                double spread) {
  Part part{Tensor(dtype, {1, 1, rows, depth}), std::vector<float>(static_cast<std::size_t>(rows))};
  part.out.FillNormal(random);
  for (float& lse : part.lse) lse = static_cast<float>(mean + spread * random.Normal());
  return part;
}

Part Merged(Part part, const Part& other) {
  merge(part.out.mutable_view(),
        Contiguous<void>(part.lse.data(), DType::kFloat32, {1, 1, std::ssize(part.lse)}),
        other.out.view(), other.lse_view(), 1);
  return part;
}

TEST(Merge, LargeLseLoseNothing) {
  // At 10,000 nats a float32 is known to half of a thousandth: what the given ones say is kept.
  Random random(31);
  ForEachInstructionSet([&] {
    for (const double mean : {0.0, -700.0, 1e4, -1e4, 3e6}) {
      const Part a = RandomPart(random, DType::kFloat32, 50, 19, mean, 2.0);
      const Part b = RandomPart(random, DType::kFloat32, 50, 19, mean, 2.0);
      const Part merged = Merged(a, b);
      for (std::int64_t i = 0; i < 50; ++i) {
        const auto row = static_cast<std::size_t>(i);
        const double difference = static_cast<double>(b.lse[row]) - a.lse[row];
        const double share = 1.0 / (1.0 + std::exp(-difference));  // of b
        const double u = UnitRoundoff(DType::kFloat32);
        const double exact = a.lse[row] + std::log1p(std::exp(difference));
        ASSERT_NEAR(merged.lse[row], exact, u * (std::abs(exact) + 8.0 + std::abs(difference)));
        for (std::int64_t c = 0; c < 19; ++c) {
          const double from = a.out.at(0, 0, i, c);
          const double to = b.out.at(0, 0, i, c);
          ASSERT_NEAR(merged.out.at(0, 0, i, c), (1.0 - share) * from + share * to,
                      u * (10.0 + 2.0 * std::abs(difference)) * (std::abs(from) + std::abs(to)));
        }
      }
    }
  });
}

TEST(Merge, ARowWithoutKeysChangesNoBit) {
  Random random(32);
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const Part part = RandomPart(random, dtype, 30, 21, 1e4, 300.0);
    Part nothing{Tensor(dtype, {1, 1, 30, 21}),
                 std::vector<float>(30, -std::numeric_limits<float>::infinity())};
    nothing.out.ForEach([&](auto b, auto h, auto i, auto c) { nothing.out.set(b, h, i, c, 0.0); });
    for (const Part& merged : {Merged(part, nothing), Merged(nothing, part)}) {
      EXPECT_EQ(merged.lse, part.lse);
      EXPECT_EQ(merged.out.memory(), part.out.memory());
    }
    const Part both = Merged(nothing, nothing);
    EXPECT_EQ(both.lse, nothing.lse);
    EXPECT_EQ(both.out.memory(), nothing.out.memory());
  }
}

}  // namespace
}  // namespace smyrf::testing
