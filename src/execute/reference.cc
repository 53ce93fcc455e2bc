#include "execute/reference.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/half.h"

namespace smyrf {
namespace {

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
struct Row {
  std::vector<std::int64_t> keys;
  std::vector<double> logits;
};

class Reference {
 public:
  Reference(const Problem& problem, const Plan& plan) : problem_(problem), plan_(plan) {}

  Row Logits(std::int64_t b, std::int64_t h, std::int64_t i) const {
    Row row;
    if (!Contains(plan_.valid_queries, b, i)) return row;
    if (plan_.method != Method::kLsh) {
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
          for (std::int32_t j = head.ranges[r].begin; j < head.ranges[r].end; ++j) {
            Add(b, h, i, head.key_order[static_cast<std::size_t>(j)], row);
          }
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
    if (is_valid && plan_.method == Method::kLsh && plan_.head(0, b, h).non_finite) {
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
        out[c] += weight * Element(problem_.value, b, problem_.KeyHead(h), row.keys[n], c);
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

  const Problem& problem_;
  const Plan& plan_;
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
