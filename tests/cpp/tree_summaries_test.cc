// Exact: summaries of a key tree's nodes by their definitions, and softmax over them in float64.
#include "plan/summaries.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "testing/bounds.h"
#include "testing/instruction_sets.h"
#include "testing/random_call.h"
#include "validate.h"

namespace smyrf::testing {
namespace {

using kernels::kCoordinates;

/// A call's plan and the summaries of every key head.
struct Summarized {
  Problem problem;
  Plan made;
  std::vector<Summaries> summaries;

  explicit Summarized(const Call& call)
      : problem(CheckProblem(call.arguments(), call.options, true)),
        made(plan(call.arguments(), call.options)) {
    for (std::int64_t b = 0; b < made.batch; ++b) {
      for (std::int64_t g = 0; g < made.key_heads; ++g) {
        summaries.emplace_back(problem, b, g, made.key_tree(b, g), 1);
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
        const KeyTree& tree = all.made.key_tree(b, g);
        const kernels::NodesView view = all.summaries[static_cast<std::size_t>(2 * b + g)].view();
        const double parts = std::accumulate(view.profile, view.profile + kCoordinates, 0.0);
        ASSERT_NEAR(parts, 1.0, 1e-6);
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

          double trace = 0.0;
          double axis_square = 0.0;
          for (std::int64_t c = 0; c < kCoordinates; ++c) {
            trace += moments([&](auto j) {
                       return Coordinate(call.key, b, g, j, tree.key_basis, c);
                     }).second;
            const double axis = view.axes[id * kCoordinates + c];
            axis_square += axis * axis;
          }
          // The axis and what it leaves make up the variance. Where power iterations have not
          // converged, an axis may be longer than the variance in a coordinate: the rest is cut
          // off at 0, and the parents' sums are larger by as much.
          const double residual = view.residuals[id];
          ASSERT_GE(residual, 0.0);
          ASSERT_GE(axis_square + residual, (1.0 - 1e-4) * trace);
          ASSERT_LE(axis_square + residual, 1.1 * trace + 1e-12);
          // The leading component of n keys holds at least 1 / (n - 1) of their variance. Power
          // iterations may miss some of it, and a parent's is found in its children's.
          const double rank = std::min({count - 1.0, static_cast<double>(kCoordinates),
                                        static_cast<double>(call.shape.depth)});
          if (count > 1.0) {
            ASSERT_GE(axis_square, 0.4 * trace / rank) << "node " << id;
          }
          ASSERT_LE(axis_square, 1.001 * trace);
        }
      }
    }
  }
}

/// Softmax over the plan's keys and summaries in float64, with the axes that the summaries found.
Exact Softmax(const Call& call, const Summarized& all) {
  Exact exact;
  const auto dv = static_cast<std::size_t>(call.shape.value_depth);
  exact.out.assign(call.rows() * dv, 0.0);
  exact.lse.assign(call.rows(), -kInfinity);
  for (std::int64_t b = 0; b < call.shape.batch; ++b) {
    for (std::int64_t h = 0; h < call.shape.query_heads; ++h) {
      const std::int64_t g = call.KeyHead(h);
      const HeadPlan& head = all.made.head(0, b, h);
      const KeyTree& tree = all.made.key_tree(b, g);
      const kernels::NodesView view =
          all.summaries[static_cast<std::size_t>(b * call.shape.key_heads + g)].view();
      for (const QueryBlock& block : head.blocks) {
        for (std::int32_t rank = block.begin; rank < block.end; ++rank) {
          const std::int64_t i = head.query_order[static_cast<std::size_t>(rank)];
          std::vector<double> logits;
          std::vector<std::vector<double>> values;
          const auto value = [&](const auto& number) {
            values.emplace_back();
            for (std::size_t c = 0; c < dv; ++c) values.back().push_back(number(c));
          };
          for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
            for (std::int32_t at = head.ranges[r].begin; at < head.ranges[r].end; ++at) {
              const std::int64_t j = tree.key_order[static_cast<std::size_t>(at)];
              double dot = 0.0;
              for (std::int64_t c = 0; c < call.shape.depth; ++c) {
                dot += call.query.at(b, h, i, c) * call.key.at(b, g, j, c);
              }
              logits.push_back(call.scale() * dot);
              value([&](std::size_t c) {
                return call.value.at(b, g, j, static_cast<std::int64_t>(c));
              });
            }
          }
          for (std::uint32_t n = block.first_node; n < block.last_node; ++n) {
            const std::int64_t id = head.nodes[n];
            const Node& node = tree.nodes[static_cast<std::size_t>(id)];
            double dot = 0.0;
            for (std::int64_t c = 0; c < call.shape.depth; ++c) {
              dot += call.query.at(b, h, i, c) * view.mean_keys[id * call.shape.depth + c];
            }
            double u = 0.0;
            double along = 0.0;
            for (std::int64_t c = 0; c < kCoordinates; ++c) {
              const double y = call.scale() * Coordinate(call.query, b, h, i, tree.query_basis, c);
              u += y * y * view.profile[c] * view.residuals[id];
              along += y * view.axes[id * kCoordinates + c];
            }
            u += along * along;
            const double log_count = std::log(node.end - node.begin);
            const double added =
                u > 2.0 * log_count ? std::sqrt(2.0 * u * log_count) : log_count + u / 2.0;
            logits.push_back(call.scale() * dot + added);
            value([&](std::size_t c) {
              return static_cast<double>(view.mean_values[static_cast<std::size_t>(id) * dv + c]);
            });
          }
          const double largest = *std::max_element(logits.begin(), logits.end());
          double sum = 0.0;
          const std::size_t row = call.Row(b, h, i);
          for (std::size_t n = 0; n < logits.size(); ++n) {
            const double weight = std::exp(logits[n] - largest);
            sum += weight;
            for (std::size_t c = 0; c < dv; ++c) exact.out[row * dv + c] += weight * values[n][c];
          }
          for (std::size_t c = 0; c < dv; ++c) exact.out[row * dv + c] /= sum;
          exact.lse[row] = largest + std::log(sum);
        }
      }
    }
  }
  return exact;
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
      const Exact exact = Softmax(call, all);
      // A summary's logit has more roundings than a key's: those of variances and coordinates.
      ASSERT_TRUE(Close(call, Attend(call, &all.made), exact, 4.0));
    });
  }
}

}  // namespace
}  // namespace smyrf::testing
