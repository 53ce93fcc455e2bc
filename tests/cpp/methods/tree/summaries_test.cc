// Exact: summaries of a key tree's nodes by their definitions, and softmax over them in float64.
#include "methods/tree/summaries.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "call/check.h"
#include "testing/bounds.h"
#include "testing/instruction_sets.h"
#include "testing/plan_rows.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

using kernels::kCoordinates;

/// A call's plan and the summaries of every key head.
struct Summarized {
  Problem problem;
  PlanParts made;
  std::vector<Summaries> summaries;

  explicit Summarized(const Call& call)
      : problem(CheckProblem(call.arguments(), call.options, true)), made(PlanOf(call)) {
    for (std::int64_t b = 0; b < made.batch; ++b) {
      for (std::int64_t g = 0; g < made.key_heads; ++g) {
        summaries.emplace_back(problem, b, g, made.forest(b, g), smyrf::Run(1));
      }
    }
  }
};

/// Coordinate c of a row in a basis (D, kCoordinates).
double Coordinate(const Tensor& rows, std::int64_t b, std::int64_t h, std::int64_t i,
                  const std::vector<float>& basis, std::int64_t c) {
  double sum = 0.0;
  for (std::int64_t r = 0; r < rows.shape()[3]; ++r) {
    sum += rows.at(b, h, i, r) * basis[static_cast<std::size_t>(r * kCoordinates + c)];
  }
  return sum;
}

Call NodeCall(Random& random, DType dtype) {
  const std::int64_t depth = random.Of<std::int64_t>({3, 16, 33, 64});
  Call call({2, 4, 2, random.Between(1, 60), random.Between(64, 400), depth, 17}, dtype);
  call.query.FillNormal(random, random.Of({0.5, 2.0}));
  call.key.FillNormal(random);
  call.value.FillNormal(random);
  call.options.method = Method::kTree;
  call.options.tolerance = 0.9;
  call.options.max_density = random.Of({0.2, 0.5});
  return call;
}

TEST(TreeSummaries, AreMeansSpreadsAndVariancesOfTheirKeys) {
  Random random(180);
  for (int n = 0; n < 12 && !::testing::Test::HasFatalFailure(); ++n) {
    const Call call = NodeCall(random, random.Of({DType::kFloat32, DType::kBFloat16}));
    SCOPED_TRACE(::testing::Message() << call);
    const Summarized all(call);
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t g = 0; g < 2; ++g) {
        const KeyForest& tree = all.made.forest(b, g);
        const kernels::NodesView view = all.summaries[static_cast<std::size_t>(2 * b + g)].view();
        // What directions leave of the coordinates' variances, summed by root.
        std::vector<double> left(static_cast<std::size_t>(tree.segments[0].roots * kCoordinates));
        std::vector<std::int64_t> roots(tree.nodes.size());
        for (std::int64_t id = 0; id < std::ssize(tree.nodes); ++id) {
          const Node& node = tree.nodes[static_cast<std::size_t>(id)];
          const double count = node.end - node.begin;
          // Mean and variance of a column of numbers of the node's keys.
          const auto moments = [&](const auto& number) {
            double mean = 0.0;
            double variance = 0.0;
            for (std::int32_t j = node.begin; j < node.end; ++j) {
              mean += number(tree.key_order[static_cast<std::size_t>(j)]) / count;
            }
            for (std::int32_t j = node.begin; j < node.end; ++j) {
              const double x = number(tree.key_order[static_cast<std::size_t>(j)]) - mean;
              variance += x * x / count;
            }
            return std::pair{mean, variance};
          };
          ASSERT_NEAR(view.log_counts[id], std::log(count), 1e-6);
          for (std::int64_t c = 0; c < call.shape.depth; ++c) {
            const double mean = moments([&](auto j) { return call.key.at(b, g, j, c); }).first;
            ASSERT_NEAR(view.mean_keys[id * call.shape.depth + c], mean, 1e-5);
          }
          double spread = 0.0;
          for (std::int64_t c = 0; c < 17; ++c) {
            const auto [mean, variance] =
                moments([&](auto j) { return call.value.at(b, g, j, c); });
            ASSERT_NEAR(view.mean_values[id * 17 + c], mean, 1e-5);
            spread += variance;
          }
          ASSERT_NEAR(view.value_spreads[id], spread, 1e-4 * (spread + 1e-3));

          const auto coordinate = [&](std::int64_t j, std::int64_t c) {
            return Coordinate(call.key, b, g, j, tree.key_basis, c);
          };
          const float* direction = tree.directions.data() + id * kCoordinates;
          const double along = moments([&](auto j) {
                                 double sum = 0.0;
                                 for (std::int64_t c = 0; c < kCoordinates; ++c) {
                                   sum += direction[c] * coordinate(j, c);
                                 }
                                 return sum;
                               }).second;
          double trace = 0.0;
          double length = 0.0;
          if (id < tree.segments[0].roots) roots[static_cast<std::size_t>(id)] = id;
          const std::int64_t root = roots[static_cast<std::size_t>(id)];
          std::fill_n(roots.begin() + node.first_child, node.child_count, root);
          ASSERT_EQ(view.root_of[id], root);
          for (std::int64_t c = 0; c < kCoordinates; ++c) {
            const double variance = moments([&](auto j) { return coordinate(j, c); }).second;
            const double axis = view.axes[id * kCoordinates + c];
            const double own = along * direction[c] * direction[c];
            ASSERT_NEAR(axis, std::sqrt(along) * direction[c], 1e-4);
            left[static_cast<std::size_t>(root * kCoordinates + c)] +=
                std::max(0.0, variance - own);
            trace += variance;
            length += direction[c] * direction[c];
          }
          ASSERT_NEAR(length, count > 1.0 ? 1.0 : 0.0, 1e-5);
          ASSERT_NEAR(view.residuals[id], trace - along, 1e-4 * (trace + 1e-3));
          // The leading component of n keys holds at least 1 / (n - 1) of their variance. Power
          // iterations may miss some of it, and only so many rows are looked at.
          const double rank = std::min({count - 1.0, static_cast<double>(kCoordinates),
                                        static_cast<double>(call.shape.depth)});
          if (count > 1.0) {
            ASSERT_GE(along, 0.4 * trace / rank) << "node " << id;
          }
        }
        for (std::int64_t root = 0; root < tree.segments[0].roots; ++root) {
          const double* of_root = left.data() + root * kCoordinates;
          const double sum = std::accumulate(of_root, of_root + kCoordinates, 0.0);
          for (std::int64_t c = 0; c < kCoordinates; ++c) {
            const double part = of_root[c] / sum;
            ASSERT_NEAR(tree.profiles[static_cast<std::size_t>(root * kCoordinates + c)], part,
                        1e-4);
          }
        }
      }
    }
  }
}

TEST(TreeSummaries, TheExecutorIsOneSoftmaxOverKeysAndSummaries) {
  Random random(181);
  for (int n = 0; n < 12 && !::testing::Test::HasFatalFailure(); ++n) {
    const Call call =
        NodeCall(random, random.Of({DType::kFloat32, DType::kFloat16, DType::kBFloat16}));
    SCOPED_TRACE(::testing::Message() << call);
    ForEachInstructionSet([&] {
      const Summarized all(call);
      for (const HeadPlan& head : all.made.heads) ASSERT_FALSE(head.nodes.empty());
      const Exact exact = RunReference(call, &all.made);
      // A summary's logit has more roundings than a key's: those of variances and coordinates.
      ASSERT_TRUE(Close(call, Attend(call, &all.made), exact, 4.0));
    });
  }
}

}  // namespace
}  // namespace smyrf::testing
