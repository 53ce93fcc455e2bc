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

/// A key head's keys in float64, and what its summaries must be of them.
struct KeyHead {
  const Call& call;
  const KeyForest& tree;
  const kernels::NodesView view;
  std::int64_t b, g;

  /// Mean and variance over a node's keys of number(key).
  template <class Number>
  std::pair<double, double> Moments(const Node& node, const Number& number) const {
    const double count = node.end - node.begin;
    double mean = 0.0;
    double variance = 0.0;
    for (std::int32_t j = node.begin; j < node.end; ++j) {
      mean += number(tree.key_order[static_cast<std::size_t>(j)]) / count;
    }
    for (std::int32_t j = node.begin; j < node.end; ++j) {
      const double x = number(tree.key_order[static_cast<std::size_t>(j)]) - mean;
      variance += x * x / count;
    }
    return {mean, variance};
  }
  double Coordinate(std::int64_t j, std::int64_t c) const {
    return testing::Coordinate(call.key, b, g, j, tree.key_basis, c);
  }

  void ExpectMeansAndSpread(std::int64_t id) const {
    const Node& node = tree.nodes[static_cast<std::size_t>(id)];
    const std::int64_t depth = call.shape.depth;
    const std::int64_t value_depth = call.shape.value_depth;
    ASSERT_NEAR(view.log_counts[id], std::log(node.end - node.begin), 1e-6);
    for (std::int64_t c = 0; c < depth; ++c) {
      const double mean = Moments(node, [&](auto j) { return call.key.at(b, g, j, c); }).first;
      ASSERT_NEAR(view.mean_keys[id * depth + c], mean, 1e-5);
    }
    double spread = 0.0;
    for (std::int64_t c = 0; c < value_depth; ++c) {
      const auto [mean, variance] =
          Moments(node, [&](auto j) { return call.value.at(b, g, j, c); });
      ASSERT_NEAR(view.mean_values[id * value_depth + c], mean, 1e-5);
      spread += variance;
    }
    ASSERT_NEAR(view.value_spreads[id], spread, 1e-4 * (spread + 1e-3));
  }

  /// Adds to `left` (kCoordinates) what the node's direction leaves of its coordinates' variances.
  void ExpectVariances(std::int64_t id, double* left) const {
    const Node& node = tree.nodes[static_cast<std::size_t>(id)];
    const double count = node.end - node.begin;
    const float* direction = tree.directions.data() + id * kCoordinates;
    const auto on_direction = [&](auto j) {
      double sum = 0.0;
      for (std::int64_t c = 0; c < kCoordinates; ++c) sum += direction[c] * Coordinate(j, c);
      return sum;
    };
    const double along = Moments(node, on_direction).second;
    double trace = 0.0;
    double length = 0.0;
    for (std::int64_t c = 0; c < kCoordinates; ++c) {
      const double variance = Moments(node, [&](auto j) { return Coordinate(j, c); }).second;
      ASSERT_NEAR(view.axes[id * kCoordinates + c], std::sqrt(along) * direction[c], 1e-4);
      left[c] += std::max(0.0, variance - along * direction[c] * direction[c]);
      trace += variance;
      length += direction[c] * direction[c];
    }
    ASSERT_NEAR(length, count > 1.0 ? 1.0 : 0.0, 1e-5);
    ASSERT_NEAR(view.residuals[id], trace - along, 1e-4 * (trace + 1e-3));
    // The leading component of n keys holds at least 1 / (n - 1) of their variance. Power
    // iterations may miss some of it, and only so many rows are looked at.
    const double rank = std::min(
        {count - 1.0, static_cast<double>(kCoordinates), static_cast<double>(call.shape.depth)});
    if (count > 1.0) {
      ASSERT_GE(along, 0.4 * trace / rank) << "node " << id;
    }
  }

  void ExpectProfile(std::int64_t root, const double* left) const {
    const double sum = std::accumulate(left, left + kCoordinates, 0.0);
    for (std::int64_t c = 0; c < kCoordinates; ++c) {
      const float profile = tree.profiles[static_cast<std::size_t>(root * kCoordinates + c)];
      ASSERT_NEAR(profile, left[c] / sum, 1e-4);
    }
  }

  void ExpectSummaries() const {
    const std::int64_t roots = tree.segments[0].roots;
    std::vector<double> left(static_cast<std::size_t>(roots * kCoordinates));  // by root
    std::vector<std::int64_t> root_of(tree.nodes.size());
    std::iota(root_of.begin(), root_of.begin() + roots, 0);
    for (std::int64_t id = 0; id < std::ssize(tree.nodes); ++id) {
      const Node& node = tree.nodes[static_cast<std::size_t>(id)];
      const std::int64_t root = root_of[static_cast<std::size_t>(id)];
      std::fill_n(root_of.begin() + node.first_child, node.child_count, root);
      ASSERT_EQ(view.root_of[id], root);
      ASSERT_NO_FATAL_FAILURE(ExpectMeansAndSpread(id));
      ASSERT_NO_FATAL_FAILURE(ExpectVariances(id, left.data() + root * kCoordinates));
    }
    for (std::int64_t root = 0; root < roots; ++root) {
      ASSERT_NO_FATAL_FAILURE(ExpectProfile(root, left.data() + root * kCoordinates));
    }
  }
};

TEST(TreeSummaries, AreMeansSpreadsAndVariancesOfTheirKeys) {
  Random random(180);
  for (int n = 0; n < 12; ++n) {
    const Call call = NodeCall(random, random.Of({DType::kFloat32, DType::kBFloat16}));
    SCOPED_TRACE(::testing::Message() << call);
    const Summarized all(call);
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t g = 0; g < 2; ++g) {
        const auto& summaries = all.summaries[static_cast<std::size_t>(2 * b + g)];
        const KeyHead head{call, all.made.forest(b, g), summaries.view(), b, g};
        ASSERT_NO_FATAL_FAILURE(head.ExpectSummaries());
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
