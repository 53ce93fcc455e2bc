#include "methods/tree/reference.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "methods/structure.h"
#include "methods/tree/kernels/nodes.h"

namespace smyrf {
namespace {

using kernels::kCoordinates;

using Coordinates = std::array<double, static_cast<std::size_t>(kCoordinates)>;

/// What a node's logit is made of.
struct NodeTerms {
  double dot = 0.0;      ///< q . mean key
  double u = 0.0;        ///< variance of the logits
  Coordinates y{};       ///< of the query, times scale
  double along = 0.0;    ///< y . direction, of length 1
  double energy = 0.0;   ///< sum of y^2 by the root's profile
  double deviation = 0;  ///< of the keys along the direction
  double log_count = 0.0;
};

/// Summaries of one (batch, key head), by the definitions.
struct NodeMeans {
  std::vector<double> keys, values;     ///< (nodes, D), (nodes, Dv)
  std::vector<double> axes, residuals;  ///< (nodes, coordinates), (nodes)
  std::vector<double> deviations;       ///< (nodes): along the direction
  std::vector<Coordinates> centres;     ///< (nodes): coordinates of the mean key
  std::vector<std::int32_t> roots;      ///< (nodes): which of all segments' roots is above
};

class TreeColumns final : public ReferenceColumns {
 public:
  TreeColumns(const Problem& problem, const PlanView& plan) : problem_(problem), plan_(plan) {
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      for (std::int64_t g = 0; g < problem.key_heads; ++g) means_.push_back(Means(b, g));
    }
  }

  bool NonFinite(std::int64_t b, std::int64_t h) const override {
    return plan_.head(0, b, h).non_finite;
  }

  std::vector<std::int64_t> Of(std::int64_t b, std::int64_t h, std::int64_t i) const override {
    const HeadView head = plan_.head(0, b, h);
    if (head.dense) return AllKeys(problem_, b);
    std::vector<std::int64_t> columns;
    const KeyForestView tree = plan_.forest(b, problem_.KeyHead(h));
    const auto rank =
        std::find(head.query_order.begin(), head.query_order.end(), i) - head.query_order.begin();
    for (const QueryBlock& block : head.blocks) {
      if (rank < block.begin || rank >= block.end) continue;
      for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
        for (std::int32_t j = head.ranges[r].begin; j < head.ranges[r].end; ++j) {
          columns.push_back(tree.key_order[static_cast<std::size_t>(j)]);
        }
      }
      for (std::uint32_t n = block.first_node; n < block.last_node; ++n) {
        columns.push_back(-1 - std::int64_t{head.nodes[n]});
      }
    }
    return columns;
  }

  /// ln n + scale q.mean(k) + c, with c = u / 2, or sqrt(2 u ln n) - ln n where u > 2 ln n.
  double Logit(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t id) const override {
    const NodeTerms terms = Terms(b, h, i, id);
    const double added = terms.u > 2.0 * terms.log_count
                             ? std::sqrt(2.0 * terms.u * terms.log_count)
                             : terms.log_count + terms.u / 2.0;
    return problem_.scale * terms.dot + added;
  }

  double Value(std::int64_t b, std::int64_t g, std::int64_t id, std::int64_t c) const override {
    return means_[static_cast<std::size_t>(b * problem_.key_heads + g)]
        .values[static_cast<std::size_t>(id * problem_.value_depth + c)];
  }

  SummaryGradients NoGradients(std::int64_t b, std::int64_t g) const override {
    const std::size_t nodes = plan_.forest(b, g).nodes.size();
    SummaryGradients gradients;
    gradients.keys.resize(nodes * static_cast<std::size_t>(problem_.depth));
    gradients.values.resize(nodes * static_cast<std::size_t>(problem_.value_depth));
    gradients.along.resize(nodes);
    gradients.rest.resize(nodes);
    return gradients;
  }

  /// What the gradient `ds` of a node's logit adds to those of its query and its summaries.
  void AddGradient(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t id, double ds,
                   double* grad_query, SummaryGradients& to) const override {
    const std::int64_t g = problem_.KeyHead(h);
    const KeyForestView tree = plan_.forest(b, g);
    const NodeMeans& means = means_[static_cast<std::size_t>(b * problem_.key_heads + g)];
    const NodeTerms terms = Terms(b, h, i, id);
    const std::int64_t depth = problem_.depth;
    for (std::int64_t c = 0; c < depth; ++c) {
      const auto at = static_cast<std::size_t>(id * depth + c);
      grad_query[c] += ds * problem_.scale * means.keys[at];
      to.keys[at] += ds * problem_.scale * Element(problem_.query, b, h, i, c);
    }
    const double du =
        ds * (terms.u > 2.0 * terms.log_count ? std::sqrt(terms.log_count / (2.0 * terms.u)) : 0.5);
    to.along[static_cast<std::size_t>(id)] += du * terms.along * terms.along;
    to.rest[static_cast<std::size_t>(id)] += du * terms.energy;
    const std::size_t root = static_cast<std::size_t>(means.roots[static_cast<std::size_t>(id)]);
    const double residual = means.residuals[static_cast<std::size_t>(id)];
    for (std::size_t c = 0; c < terms.y.size(); ++c) {
      const std::size_t at = static_cast<std::size_t>(id) * terms.y.size() + c;
      const double dy = du * 2.0 *
                        (terms.deviation * terms.along * means.axes[at] +
                         terms.y[c] * residual * tree.profiles[root * terms.y.size() + c]);
      for (std::int64_t r = 0; r < depth; ++r) {
        grad_query[r] +=
            problem_.scale * dy * tree.query_basis[static_cast<std::size_t>(r * kCoordinates) + c];
      }
    }
  }

  /// From the summaries to every key and value that they are of: the mean's gradient in n equal
  /// parts, a variance's by 2 / n times the distance from the mean. The variance along the
  /// direction is no part of what it leaves.
  void Distribute(std::int64_t b, std::int64_t g, const SummaryGradients& from, double* grad_key,
                  double* grad_value) const override {
    const KeyForestView tree = plan_.forest(b, g);
    const NodeMeans& means = means_[static_cast<std::size_t>(b * problem_.key_heads + g)];
    const std::int64_t depth = problem_.depth;
    const std::int64_t dv = problem_.value_depth;
    for (std::size_t id = 0; id < tree.nodes.size(); ++id) {
      const Node& node = tree.nodes[id];
      const double n = node.end - node.begin;
      const double rest = means.residuals[id] > 0.0 ? from.rest[id] : 0.0;
      const float* direction = tree.directions.data() + id * static_cast<std::size_t>(kCoordinates);
      const double by_variance = from.along[id] - rest;
      for (std::int32_t j = node.begin; j < node.end; ++j) {
        const std::int64_t key = tree.key_order[static_cast<std::size_t>(j)];
        for (std::int64_t c = 0; c < depth; ++c) {
          grad_key[key * depth + c] +=
              from.keys[id * static_cast<std::size_t>(depth) + static_cast<std::size_t>(c)] / n;
        }
        for (std::int64_t c = 0; c < dv; ++c) {
          grad_value[key * dv + c] +=
              from.values[id * static_cast<std::size_t>(dv) + static_cast<std::size_t>(c)] / n;
        }
        Coordinates x{};
        double along = 0.0;
        for (std::size_t c = 0; c < x.size(); ++c) {
          x[c] = Coordinate(problem_.key, b, g, key, tree.key_basis, static_cast<std::int64_t>(c)) -
                 means.centres[id][c];
          along += x[c] * direction[c];
        }
        for (std::size_t c = 0; c < x.size(); ++c) {
          const double dx = 2.0 / n * (by_variance * along * direction[c] + rest * x[c]);
          for (std::int64_t r = 0; r < depth; ++r) {
            grad_key[key * depth + r] +=
                dx * tree.key_basis[static_cast<std::size_t>(r * kCoordinates) + c];
          }
        }
      }
    }
  }

 private:
  /// Coordinate c of a row in a basis (D, coordinates).
  double Coordinate(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t i,
                    std::span<const float> basis, std::int64_t c) const {
    double sum = 0.0;
    for (std::int64_t r = 0; r < problem_.depth; ++r) {
      sum += Element(view, b, h, i, r) * basis[static_cast<std::size_t>(r * kCoordinates + c)];
    }
    return sum;
  }

  NodeMeans Means(std::int64_t b, std::int64_t g) const {
    NodeMeans means;
    const KeyForestView tree = plan_.forest(b, g);
    for (const Node& node : tree.nodes) {
      const double n = node.end - node.begin;
      const auto mean = [&](const auto& element, std::int64_t width, std::vector<double>& to) {
        for (std::int64_t c = 0; c < width; ++c) {
          double sum = 0.0;
          for (std::int32_t j = node.begin; j < node.end; ++j) {
            sum += element(tree.key_order[static_cast<std::size_t>(j)], c);
          }
          to.push_back(sum / n);
        }
      };
      mean([&](auto j, auto c) { return Element(problem_.key, b, g, j, c); }, problem_.depth,
           means.keys);
      mean([&](auto j, auto c) { return Element(problem_.value, b, g, j, c); },
           problem_.value_depth, means.values);
    }
    means.roots.resize(tree.nodes.size());
    std::int32_t root = 0;
    for (const Segment& segment : tree.segments) {
      for (std::int32_t i = 0; i < segment.roots; ++i) {
        means.roots[static_cast<std::size_t>(segment.first_node) + static_cast<std::size_t>(i)] =
            root++;
      }
    }
    for (std::size_t id = 0; id < tree.nodes.size(); ++id) {
      const Node& node = tree.nodes[id];
      std::fill_n(means.roots.begin() + node.first_child, node.child_count, means.roots[id]);
      AddComponents(b, g, tree, id, means);
    }
    return means;
  }

  /// A node's deviation along its direction, and the variance that it leaves.
  void AddComponents(std::int64_t b, std::int64_t g, const KeyForestView& tree, std::size_t id,
                     NodeMeans& means) const {
    const Node& node = tree.nodes[id];
    const double n = node.end - node.begin;
    std::vector<Coordinates> rows;
    Coordinates mean{};
    for (std::int32_t j = node.begin; j < node.end; ++j) {
      Coordinates& x = rows.emplace_back();
      for (std::size_t c = 0; c < x.size(); ++c) {
        x[c] = Coordinate(problem_.key, b, g, tree.key_order[static_cast<std::size_t>(j)],
                          tree.key_basis, static_cast<std::int64_t>(c));
        mean[c] += x[c] / n;
      }
    }
    const float* direction = tree.directions.data() + id * mean.size();
    double all = 0.0;
    double own = 0.0;
    for (const Coordinates& x : rows) {
      double along = 0.0;
      for (std::size_t c = 0; c < x.size(); ++c) {
        along += (x[c] - mean[c]) * direction[c];
        all += (x[c] - mean[c]) * (x[c] - mean[c]) / n;
      }
      own += along * along / n;
    }
    means.deviations.push_back(std::sqrt(own));
    means.centres.push_back(mean);
    for (std::size_t c = 0; c < mean.size(); ++c) {
      means.axes.push_back(std::sqrt(own) * direction[c]);
    }
    means.residuals.push_back(std::max(0.0, all - own));
  }

  NodeTerms Terms(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t id) const {
    const std::int64_t g = problem_.KeyHead(h);
    const KeyForestView tree = plan_.forest(b, g);
    const NodeMeans& means = means_[static_cast<std::size_t>(b * problem_.key_heads + g)];
    const Node& node = tree.nodes[static_cast<std::size_t>(id)];
    NodeTerms terms;
    for (std::int64_t c = 0; c < problem_.depth; ++c) {
      terms.dot += Element(problem_.query, b, h, i, c) *
                   means.keys[static_cast<std::size_t>(id * problem_.depth + c)];
    }
    const std::size_t root = static_cast<std::size_t>(means.roots[static_cast<std::size_t>(id)]);
    for (std::size_t c = 0; c < terms.y.size(); ++c) {
      terms.y[c] = problem_.scale * Coordinate(problem_.query, b, h, i, tree.query_basis,
                                               static_cast<std::int64_t>(c));
      terms.energy += terms.y[c] * terms.y[c] * tree.profiles[root * terms.y.size() + c];
      terms.along +=
          terms.y[c] * tree.directions[static_cast<std::size_t>(id) * terms.y.size() + c];
    }
    terms.deviation = means.deviations[static_cast<std::size_t>(id)];
    terms.u = std::pow(terms.deviation * terms.along, 2) +
              means.residuals[static_cast<std::size_t>(id)] * terms.energy;
    terms.log_count = std::log(node.end - node.begin);
    return terms;
  }

  const Problem& problem_;
  const PlanView plan_;
  std::vector<NodeMeans> means_;  ///< (batch, key head)
};

}  // namespace

std::unique_ptr<ReferenceColumns> TreeColumnsOf(const Problem& problem, const PlanView& plan) {
  return std::make_unique<TreeColumns>(problem, plan);
}

}  // namespace smyrf
