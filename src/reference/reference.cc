#include "reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace smyrf {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Every (column, logit) that a query meets, in plan order.
struct Row {
  std::vector<std::int64_t> keys;
  std::vector<double> logits;
};

/// Of one query (D), and sums of the keys (Nk, D), values (Nk, Dv) and summaries of its key head.
struct RowGradients {
  double* query;
  double* keys;
  double* values;
  SummaryGradients& nodes;
};

class Reference {
 public:
  Reference(const Problem& problem, const ReferenceColumns& columns)
      : problem_(problem), columns_(columns) {}

  Row Logits(std::int64_t b, std::int64_t h, std::int64_t i) const {
    Row row;
    if (!Contains(problem_.valid_queries, b, i)) return row;
    for (const std::int64_t column : columns_.Of(b, h, i)) {
      if (column >= 0) {
        Add(b, h, i, column, row);
      } else {
        row.keys.push_back(column);
        row.logits.push_back(columns_.Logit(b, h, i, -1 - column));
      }
    }
    return row;
  }

  void Run(std::int64_t b, std::int64_t h, std::int64_t i, double* out, double* lse) const {
    const std::int64_t dv = problem_.value_depth;
    std::fill_n(out, dv, 0.0);
    *lse = -kInfinity;
    const bool is_valid = Contains(problem_.valid_queries, b, i);
    if (is_valid && columns_.NonFinite(b, h)) {
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

  /// Writes the query's gradient, and adds what it does to the others.
  void RunBackward(std::int64_t b, std::int64_t h, std::int64_t i, const TensorView& grad_out,
                   double grad_lse, const RowGradients& to) const {
    const std::int64_t dv = problem_.value_depth;
    std::vector<double> out(static_cast<std::size_t>(dv));
    double lse = 0.0;
    Run(b, h, i, out.data(), &lse);
    std::fill_n(to.query, problem_.depth, std::isnan(lse) ? kNaN : 0.0);
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
      double* values = key >= 0 ? to.values + key * dv : to.nodes.values.data() + (-1 - key) * dv;
      for (std::int64_t c = 0; c < dv; ++c) {
        dot += Element(grad_out, b, h, i, c) * Value(b, g, key, c);
        values[c] += weight * kept * Element(grad_out, b, h, i, c);
      }
      const double ds = weight * (kept * dot - delta);
      if (key < 0) {
        columns_.AddGradient(b, h, i, -1 - key, ds, to.query, to.nodes);
        continue;
      }
      for (std::int64_t c = 0; c < problem_.depth; ++c) {
        to.query[c] += ds * problem_.scale * Element(problem_.key, b, g, key, c);
        to.keys[key * problem_.depth + c] +=
            ds * problem_.scale * Element(problem_.query, b, h, i, c);
      }
    }
  }

  /// NaN in the valid rows of a key head's gradient (Nk, width).
  void Spoil(std::int64_t b, std::int64_t width, double* gradient) const {
    for (std::int64_t j = 0; j < problem_.keys; ++j) {
      if (Contains(problem_.valid_keys, b, j)) std::fill_n(gradient + j * width, width, kNaN);
    }
  }

 private:
  static bool Contains(const ValidLists& valid, std::int64_t b, std::int64_t i) {
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

  /// What dropout makes of a pair's weight. Methods with summaries have none.
  double Kept(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t key) const {
    if (!problem_.dropout.active()) return 1.0;
    return problem_.dropout.Of(problem_.dropout.Row(b, h, i), key);
  }

  double Value(std::int64_t b, std::int64_t g, std::int64_t key, std::int64_t c) const {
    return key >= 0 ? Element(problem_.value, b, g, key, c) : columns_.Value(b, g, -1 - key, c);
  }

  const Problem& problem_;
  const ReferenceColumns& columns_;
};

}  // namespace

void ExecuteReference(const Problem& problem, const ReferenceColumns& columns, double* out,
                      double* lse) {
  const Reference reference(problem, columns);
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

void ExecuteReferenceBackward(const Problem& problem, const ReferenceColumns& columns,
                              const TensorView& grad_out, const float* grad_lse, double* grad_query,
                              double* grad_key, double* grad_value) {
  const Reference reference(problem, columns);
  const std::int64_t keys = problem.batch * problem.key_heads * problem.keys;
  std::fill_n(grad_key, keys * problem.depth, 0.0);
  std::fill_n(grad_value, keys * problem.value_depth, 0.0);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    for (std::int64_t g = 0; g < problem.key_heads; ++g) {
      const std::int64_t first = (b * problem.key_heads + g) * problem.keys;
      double* of_keys = grad_key + first * problem.depth;
      double* of_values = grad_value + first * problem.value_depth;
      SummaryGradients of_nodes = columns.NoGradients(b, g);
      const std::int64_t group = problem.query_heads / problem.key_heads;
      bool non_finite = false;
      for (std::int64_t h = g * group; h < (g + 1) * group; ++h) {
        non_finite = non_finite || columns.NonFinite(b, h);
        for (std::int64_t i = 0; i < problem.queries; ++i) {
          const std::int64_t at = (b * problem.query_heads + h) * problem.queries + i;
          reference.RunBackward(b, h, i, grad_out, grad_lse != nullptr ? grad_lse[at] : 0.0,
                                {grad_query + at * problem.depth, of_keys, of_values, of_nodes});
        }
      }
      columns.Distribute(b, g, of_nodes, of_keys, of_values);
      if (!non_finite) continue;
      reference.Spoil(b, problem.depth, of_keys);
      reference.Spoil(b, problem.value_depth, of_values);
    }
  }
}

}  // namespace smyrf
