#include "reference/reference.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "base/half.h"
#include "methods/tree/kernels/nodes.h"

namespace smyrf {
namespace {

using kernels::kCoordinates;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double Element(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t i,
               std::int64_t c) {
  const std::int64_t at =
      b * view.strides[0] + h * view.strides[1] + i * view.strides[2] + c * view.strides[3];
  return LoadElement(static_cast<const std::byte*>(view.data) + at * SizeOf(view.dtype),
                     view.dtype);
}

/// Every (key, logit) that a query meets, in plan order: a key as often as the plan evaluates it.
/// The summary of node n counts as key -1 - n.
struct Row {
  std::vector<std::int64_t> keys;
  std::vector<double> logits;
};

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

/// Gradients by the summaries of one (batch, key head).
struct NodeGradients {
  std::vector<double> keys, values;  ///< by means, (nodes, D), (nodes, Dv)
  std::vector<double> along;         ///< by the variance along the direction, (nodes)
  std::vector<double> rest;          ///< by what that leaves, (nodes)
};

/// Summaries of one (batch, key head), by the definitions.
struct NodeMeans {
  std::vector<double> keys, values;     ///< (nodes, D), (nodes, Dv)
  std::vector<double> axes, residuals;  ///< (nodes, coordinates), (nodes)
  std::vector<double> deviations;       ///< (nodes): along the direction
  std::vector<Coordinates> centres;     ///< (nodes): coordinates of the mean key
  std::vector<std::int32_t> roots;      ///< (nodes): that they lie under
};

class Reference {
 public:
  Reference(const Problem& problem, const Plan& plan) : problem_(problem), plan_(plan) {
    if (plan.method != Method::kTree) return;
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      for (std::int64_t g = 0; g < problem.key_heads; ++g) means_.push_back(Means(b, g));
    }
  }

  Row Logits(std::int64_t b, std::int64_t h, std::int64_t i) const {
    Row row;
    if (!Contains(plan_.valid_queries, b, i)) return row;
    if (plan_.method == Method::kDense ||
        (plan_.method == Method::kTree && plan_.head(0, b, h).dense)) {
      for (std::int64_t j = 0; j < problem_.keys; ++j) {
        if (Contains(plan_.valid_keys, b, j)) Add(b, h, i, j, row);
      }
      return row;
    }
    for (std::int64_t round = 0; round < plan_.rounds(); ++round) {
      const HeadPlan& head = plan_.head(round, b, h);
      const auto rank =
          std::find(head.query_order.begin(), head.query_order.end(), i) - head.query_order.begin();
      for (const QueryBlock& block : head.blocks) {
        if (rank < block.begin || rank >= block.end) continue;
        for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
          const std::vector<std::int32_t>& order =
              plan_.method == Method::kTree ? plan_.key_tree(b, problem_.KeyHead(h)).key_order
                                            : head.key_order;
          for (std::int32_t j = head.ranges[r].begin; j < head.ranges[r].end; ++j) {
            Add(b, h, i, order[static_cast<std::size_t>(j)], row);
          }
        }
        for (std::uint32_t n = block.first_node; n < block.last_node; ++n) {
          AddNode(b, h, i, head.nodes[n], row);
        }
      }
    }
    return row;
  }

  void Run(std::int64_t b, std::int64_t h, std::int64_t i, double* out, double* lse) const {
    const std::int64_t dv = problem_.value_depth;
    std::fill_n(out, dv, 0.0);
    *lse = -kInfinity;
    const bool is_valid = Contains(plan_.valid_queries, b, i);
    if (is_valid && NonFinite(b, h)) {
      std::fill_n(out, dv, kNaN);
      *lse = kNaN;
      return;
    }
    const Row row = Logits(b, h, i);
    if (row.keys.empty()) return;
    double largest = -kInfinity;
    for (const double logit : row.logits) largest = std::max(largest, logit);
    // Logits that are all -inf subtract 0, so that their sum is 0: out is NaN and lse -inf.
    if (largest == -kInfinity) largest = 0.0;
    double sum = 0.0;
    for (std::size_t n = 0; n < row.keys.size(); ++n) {
      const double weight = std::exp(row.logits[n] - largest);
      sum += weight;
      const double kept = weight * Kept(b, h, i, row.keys[n]);
      for (std::int64_t c = 0; c < dv; ++c) {
        out[c] += kept * Value(b, problem_.KeyHead(h), row.keys[n], c);
      }
    }
    for (std::int64_t c = 0; c < dv; ++c) out[c] /= sum;
    *lse = largest + std::log(sum);
  }

  NodeGradients NoGradients(std::int64_t b, std::int64_t g) const {
    const std::size_t nodes = plan_.method == Method::kTree ? plan_.key_tree(b, g).nodes.size() : 0;
    NodeGradients gradients;
    gradients.keys.resize(nodes * static_cast<std::size_t>(problem_.depth));
    gradients.values.resize(nodes * static_cast<std::size_t>(problem_.value_depth));
    gradients.along.resize(nodes);
    gradients.rest.resize(nodes);
    return gradients;
  }

  /// One query's gradient, and what it adds to those of a key head's keys (Nk, D), values (Nk, Dv)
  /// and summaries.
  void RunBackward(std::int64_t b, std::int64_t h, std::int64_t i, const TensorView& grad_out,
                   double grad_lse, double* grad_query, double* grad_key, double* grad_value,
                   NodeGradients& of_nodes) const {
    const std::int64_t dv = problem_.value_depth;
    std::vector<double> out(static_cast<std::size_t>(dv));
    double lse = 0.0;
    Run(b, h, i, out.data(), &lse);
    std::fill_n(grad_query, problem_.depth, std::isnan(lse) ? kNaN : 0.0);
    const Row row = Logits(b, h, i);
    if (lse == -kInfinity) return;
    double delta = -grad_lse;
    for (std::int64_t c = 0; c < dv; ++c) {
      delta += Element(grad_out, b, h, i, c) * out[static_cast<std::size_t>(c)];
    }
    const std::int64_t g = problem_.KeyHead(h);
    for (std::size_t n = 0; n < row.keys.size(); ++n) {
      const std::int64_t key = row.keys[n];
      const double weight = std::exp(row.logits[n] - lse);
      const double kept = Kept(b, h, i, key);
      double dot = 0.0;
      double* values = key >= 0 ? grad_value + key * dv : of_nodes.values.data() + (-1 - key) * dv;
      for (std::int64_t c = 0; c < dv; ++c) {
        dot += Element(grad_out, b, h, i, c) * Value(b, g, key, c);
        values[c] += weight * kept * Element(grad_out, b, h, i, c);
      }
      const double ds = weight * (kept * dot - delta);
      if (key < 0) {
        AddNodeGradient(b, h, i, -1 - key, ds, grad_query, of_nodes);
        continue;
      }
      for (std::int64_t c = 0; c < problem_.depth; ++c) {
        grad_query[c] += ds * problem_.scale * Element(problem_.key, b, g, key, c);
        grad_key[key * problem_.depth + c] +=
            ds * problem_.scale * Element(problem_.query, b, h, i, c);
      }
    }
  }

  /// From the summaries to every key and value that they are of: the mean's gradient in n equal
  /// parts, a variance's by 2 / n times the distance from the mean. The variance along the
  /// direction is no part of what it leaves.
  void Distribute(std::int64_t b, std::int64_t g, const NodeGradients& from, double* grad_key,
                  double* grad_value) const {
    if (plan_.method != Method::kTree) return;
    const KeyTree& tree = plan_.key_tree(b, g);
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

  bool NonFinite(std::int64_t b, std::int64_t h) const {
    return plan_.method != Method::kDense && plan_.head(0, b, h).non_finite;
  }

  /// NaN in the valid rows of a key head's gradient (Nk, width).
  void Spoil(std::int64_t b, std::int64_t width, double* gradient) const {
    for (std::int64_t j = 0; j < problem_.keys; ++j) {
      if (Contains(plan_.valid_keys, b, j)) std::fill_n(gradient + j * width, width, kNaN);
    }
  }

 private:
  static bool Contains(const std::vector<std::vector<std::int32_t>>& valid, std::int64_t b,
                       std::int64_t i) {
    if (valid.empty()) return true;
    const auto& rows = valid[static_cast<std::size_t>(b)];
    return std::binary_search(rows.begin(), rows.end(), static_cast<std::int32_t>(i));
  }

  void Add(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j, Row& row) const {
    const double bias = problem_.mask.Bias(b, h, i, j);
    if (bias == -kInfinity) return;
    double dot = 0.0;
    for (std::int64_t c = 0; c < problem_.depth; ++c) {
      dot +=
          Element(problem_.query, b, h, i, c) * Element(problem_.key, b, problem_.KeyHead(h), j, c);
    }
    row.keys.push_back(j);
    row.logits.push_back(problem_.scale * dot + bias);
  }

  /// What dropout makes of a pair's weight. `tree` has none.
  double Kept(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t key) const {
    if (!problem_.dropout.active()) return 1.0;
    return problem_.dropout.Of(problem_.dropout.Row(b, h, i), key);
  }

  double Value(std::int64_t b, std::int64_t g, std::int64_t key, std::int64_t c) const {
    if (key >= 0) return Element(problem_.value, b, g, key, c);
    return means_[static_cast<std::size_t>(b * problem_.key_heads + g)]
        .values[static_cast<std::size_t>((-1 - key) * problem_.value_depth + c)];
  }

  /// Coordinate c of a row in a basis (D, coordinates).
  double Coordinate(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t i,
                    const std::vector<float>& basis, std::int64_t c) const {
    double sum = 0.0;
    for (std::int64_t r = 0; r < problem_.depth; ++r) {
      sum += Element(view, b, h, i, r) * basis[static_cast<std::size_t>(r * kCoordinates + c)];
    }
    return sum;
  }

  NodeMeans Means(std::int64_t b, std::int64_t g) const {
    NodeMeans means;
    const KeyTree& tree = plan_.key_tree(b, g);
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
    for (std::size_t id = 0; id < tree.nodes.size(); ++id) {
      const Node& node = tree.nodes[id];
      if (static_cast<std::int32_t>(id) < tree.roots)
        means.roots[id] = static_cast<std::int32_t>(id);
      std::fill_n(means.roots.begin() + node.first_child, node.child_count, means.roots[id]);
      AddComponents(b, g, tree, id, means);
    }
    return means;
  }

  /// A node's deviation along its direction, and the variance that it leaves.
  void AddComponents(std::int64_t b, std::int64_t g, const KeyTree& tree, std::size_t id,
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
    const KeyTree& tree = plan_.key_tree(b, g);
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

  /// ln n + scale q.mean(k) + c, with c = u / 2, or sqrt(2 u ln n) - ln n where u > 2 ln n.
  void AddNode(std::int64_t b, std::int64_t h, std::int64_t i, std::int32_t id, Row& row) const {
    const NodeTerms terms = Terms(b, h, i, id);
    const double added = terms.u > 2.0 * terms.log_count
                             ? std::sqrt(2.0 * terms.u * terms.log_count)
                             : terms.log_count + terms.u / 2.0;
    row.keys.push_back(-1 - std::int64_t{id});
    row.logits.push_back(problem_.scale * terms.dot + added);
  }

  /// What the gradient `ds` of a node's logit adds to those of its query and its summaries.
  void AddNodeGradient(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t id, double ds,
                       double* grad_query, NodeGradients& to) const {
    const std::int64_t g = problem_.KeyHead(h);
    const KeyTree& tree = plan_.key_tree(b, g);
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

  const Problem& problem_;
  const Plan& plan_;
  std::vector<NodeMeans> means_;  ///< (batch, key head), `tree` only
};

}  // namespace

void ExecuteReference(const Problem& problem, const Plan& plan, double* out, double* lse) {
  const Reference reference(problem, plan);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    for (std::int64_t h = 0; h < problem.query_heads; ++h) {
      for (std::int64_t i = 0; i < problem.queries; ++i) {
        const std::int64_t at = (b * problem.query_heads + h) * problem.queries + i;
        double row_lse = 0.0;
        reference.Run(b, h, i, out + at * problem.value_depth, &row_lse);
        if (lse != nullptr) lse[at] = row_lse;
      }
    }
  }
}

void ExecuteReferenceBackward(const Problem& problem, const Plan& plan, const TensorView& grad_out,
                              const float* grad_lse, double* grad_query, double* grad_key,
                              double* grad_value) {
  const Reference reference(problem, plan);
  const std::int64_t keys = problem.batch * problem.key_heads * problem.keys;
  std::fill_n(grad_key, keys * problem.depth, 0.0);
  std::fill_n(grad_value, keys * problem.value_depth, 0.0);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    for (std::int64_t g = 0; g < problem.key_heads; ++g) {
      const std::int64_t first = (b * problem.key_heads + g) * problem.keys;
      double* of_keys = grad_key + first * problem.depth;
      double* of_values = grad_value + first * problem.value_depth;
      NodeGradients of_nodes = reference.NoGradients(b, g);
      const std::int64_t group = problem.query_heads / problem.key_heads;
      bool non_finite = false;
      for (std::int64_t h = g * group; h < (g + 1) * group; ++h) {
        non_finite = non_finite || reference.NonFinite(b, h);
        for (std::int64_t i = 0; i < problem.queries; ++i) {
          const std::int64_t at = (b * problem.query_heads + h) * problem.queries + i;
          reference.RunBackward(b, h, i, grad_out, grad_lse != nullptr ? grad_lse[at] : 0.0,
                                grad_query + at * problem.depth, of_keys, of_values, of_nodes);
        }
      }
      reference.Distribute(b, g, of_nodes, of_keys, of_values);
      if (!non_finite) continue;
      reference.Spoil(b, problem.depth, of_keys);
      reference.Spoil(b, problem.value_depth, of_values);
    }
  }
}

}  // namespace smyrf
