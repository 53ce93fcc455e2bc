#include "execute/reference.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/half.h"
#include "kernels/nodes.h"

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

/// Summaries of one (batch, key head), by the definitions.
struct NodeMeans {
  std::vector<double> keys, values;     ///< (nodes, D), (nodes, Dv)
  std::vector<double> axes, residuals;  ///< (nodes, coordinates), (nodes)
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
    if (is_valid && plan_.method != Method::kDense && plan_.head(0, b, h).non_finite) {
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
      for (std::int64_t c = 0; c < dv; ++c) {
        out[c] += weight * Value(b, problem_.KeyHead(h), row.keys[n], c);
      }
    }
    for (std::int64_t c = 0; c < dv; ++c) out[c] /= sum;
    *lse = largest + std::log(sum);
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
    using Coordinates = std::array<double, static_cast<std::size_t>(kCoordinates)>;
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
    for (std::size_t c = 0; c < mean.size(); ++c) {
      means.axes.push_back(std::sqrt(own) * direction[c]);
    }
    means.residuals.push_back(std::max(0.0, all - own));
  }

  /// ln n + scale q.mean(k) + c, with c = u / 2, or sqrt(2 u ln n) - ln n where u > 2 ln n.
  void AddNode(std::int64_t b, std::int64_t h, std::int64_t i, std::int32_t id, Row& row) const {
    const std::int64_t g = problem_.KeyHead(h);
    const KeyTree& tree = plan_.key_tree(b, g);
    const NodeMeans& means = means_[static_cast<std::size_t>(b * problem_.key_heads + g)];
    const Node& node = tree.nodes[static_cast<std::size_t>(id)];
    double dot = 0.0;
    for (std::int64_t c = 0; c < problem_.depth; ++c) {
      dot += Element(problem_.query, b, h, i, c) *
             means.keys[static_cast<std::size_t>(id * problem_.depth + c)];
    }
    double energy = 0.0;
    double along = 0.0;
    for (std::int64_t c = 0; c < kCoordinates; ++c) {
      const double y = problem_.scale * Coordinate(problem_.query, b, h, i, tree.query_basis, c);
      energy += y * y *
                tree.profiles[static_cast<std::size_t>(
                    means.roots[static_cast<std::size_t>(id)] * kCoordinates + c)];
      along += y * means.axes[static_cast<std::size_t>(id * kCoordinates + c)];
    }
    const double u = along * along + means.residuals[static_cast<std::size_t>(id)] * energy;
    const double log_count = std::log(node.end - node.begin);
    const double added = u > 2.0 * log_count ? std::sqrt(2.0 * u * log_count) : log_count + u / 2.0;
    row.keys.push_back(-1 - std::int64_t{id});
    row.logits.push_back(problem_.scale * dot + added);
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

}  // namespace smyrf
