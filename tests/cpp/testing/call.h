// One call of the library with inputs of its own, and what must hold for its result.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "run/plan_parts.h"
#include "smyrf/attention.h"
#include "testing/tensor.h"

namespace smyrf::testing {

/// The last `rank` dimensions; those before must be 1.
inline TensorView Trailing(const Tensor& tensor, int rank) {
  const TensorView view = tensor.view();
  TensorView result{view.data, view.dtype, rank, {}, {}};
  const auto count = static_cast<std::size_t>(rank);
  std::copy_n(view.shape.end() - rank, count, result.shape.begin());
  std::copy_n(view.strides.end() - rank, count, result.strides.begin());
  return result;
}

struct Shape {
  std::int64_t batch = 1, query_heads = 1, key_heads = 1;
  std::int64_t queries = 1, keys = 1, depth = 1, value_depth = 1;
};

struct Call {
  Shape shape;
  Tensor query, key, value;
  std::optional<Tensor> attn_mask;  ///< each dimension of its own size or 1
  int attn_mask_rank = 4;
  std::optional<Tensor> key_padding_mask;    ///< bool (1, 1, B, Nk)
  std::optional<Tensor> query_padding_mask;  ///< bool (1, 1, B, Nq)
  /// Other precisions are asked for by the tests that are about them.
  Options options{.precision = Precision::kFloat32};

  Call() = default;
  explicit Call(const Shape& s, DType dtype = DType::kFloat32, Layout query_layout = {},
                Layout key_layout = {}, Layout value_layout = {})
      : shape(s),
        query(dtype, {s.batch, s.query_heads, s.queries, s.depth}, query_layout),
        key(dtype, {s.batch, s.key_heads, s.keys, s.depth}, key_layout),
        value(dtype, {s.batch, s.key_heads, s.keys, s.value_depth}, value_layout) {
    options.enable_gqa = s.query_heads != s.key_heads;
  }

  void FillNormal(Random& random) {
    query.FillNormal(random);
    key.FillNormal(random);
    value.FillNormal(random);
  }
  Arguments arguments() const {
    Arguments result{query.view(), key.view(), value.view()};
    if (attn_mask) result.attn_mask = Trailing(*attn_mask, attn_mask_rank);
    if (key_padding_mask) result.key_padding_mask = Trailing(*key_padding_mask, 2);
    if (query_padding_mask) result.query_padding_mask = Trailing(*query_padding_mask, 2);
    return result;
  }

  double scale() const {
    return options.scale.value_or(1.0 / std::sqrt(static_cast<double>(shape.depth)));
  }
  std::int64_t KeyHead(std::int64_t h) const { return h / (shape.query_heads / shape.key_heads); }
  bool IsValidQuery(std::int64_t b, std::int64_t i) const {
    return !query_padding_mask || query_padding_mask->at(0, 0, b, i) != 0.0;
  }
  bool IsValidKey(std::int64_t b, std::int64_t j) const {
    return !key_padding_mask || key_padding_mask->at(0, 0, b, j) != 0.0;
  }
  /// What attn_mask adds to a logit: -inf where it forbids the pair.
  double Bias(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    if (!attn_mask) return 0.0;
    const Tensor::Index& s = attn_mask->shape();
    const double added =
        attn_mask->at(s[0] == 1 ? 0 : b, s[1] == 1 ? 0 : h, s[2] == 1 ? 0 : i, s[3] == 1 ? 0 : j);
    if (attn_mask->dtype() != DType::kBool) return added;
    return added != 0.0 ? 0.0 : -kInfinity;
  }
  /// The contract's sentence on masks, pair by pair: all of them combine by AND.
  bool Allowed(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const std::int64_t diagonal =
        i + (options.positions ? options.positions->first_query - options.positions->first_key
                               : shape.keys - shape.queries);
    if (!IsValidQuery(b, i) || !IsValidKey(b, j)) return false;
    if (options.is_causal && j > diagonal) return false;
    if (options.window) {
      const auto [left, right] = *options.window;
      if (left >= 0 && diagonal - j > left) return false;
      if (right >= 0 && j - diagonal > right) return false;
    }
    return Bias(b, h, i, j) != -kInfinity;
  }
  bool SeesNothing(std::int64_t b, std::int64_t h, std::int64_t i) const {
    for (std::int64_t j = 0; j < shape.keys; ++j) {
      if (Allowed(b, h, i, j)) return false;
    }
    return true;
  }
  std::size_t Row(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return static_cast<std::size_t>((b * shape.query_heads + h) * shape.queries + i);
  }
  std::size_t rows() const {
    return static_cast<std::size_t>(shape.batch * shape.query_heads * shape.queries);
  }
  /// body(b, h, i) for every query row.
  template <class Body>
  void ForEachRow(const Body& body) const {
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t h = 0; h < shape.query_heads; ++h) {
        for (std::int64_t i = 0; i < shape.queries; ++i) body(b, h, i);
      }
    }
  }
};

inline std::ostream& operator<<(std::ostream& stream, const Call& call) {
  const Shape& s = call.shape;
  const auto dtype = [](const Tensor& tensor) {
    return tensor.dtype() == DType::kFloat32   ? "float32"
           : tensor.dtype() == DType::kFloat16 ? "float16"
           : tensor.dtype() == DType::kBool    ? "bool"
                                               : "bfloat16";
  };
  stream << dtype(call.query) << " B " << s.batch << " Hq " << s.query_heads << " Hkv "
         << s.key_heads << " Nq " << s.queries << " Nk " << s.keys << " D " << s.depth << " Dv "
         << s.value_depth << " scale " << call.scale();
  if (call.options.is_causal) stream << " causal";
  if (call.options.window) {
    stream << " window " << call.options.window->left << "," << call.options.window->right;
  }
  if (call.options.positions) {
    stream << " positions " << call.options.positions->first_query << ","
           << call.options.positions->first_key;
  }
  if (call.attn_mask) {
    stream << " attn_mask " << dtype(*call.attn_mask);
    for (const std::int64_t size : call.attn_mask->shape()) stream << " " << size;
  }
  if (call.key_padding_mask) stream << " key padding";
  if (call.query_padding_mask) stream << " query padding";
  if (call.options.method == Method::kLsh) {
    stream << " lsh n_hashes " << call.options.n_hashes.value_or(kDefaultHashes) << " cluster_size "
           << call.options.cluster_size.value_or(kDefaultClusterSize) << " seed "
           << call.options.seed;
  }
  if (call.options.method == Method::kTree) {
    stream << " tree tolerance " << call.options.tolerance.value_or(kDefaultTolerance);
    if (call.options.max_density) stream << " max_density " << *call.options.max_density;
    stream << " seed " << call.options.seed;
  }
  return stream << " threads " << call.options.num_threads;
}

struct Result {
  Tensor out;
  std::vector<float> lse;
  Statistics statistics;

  bool SameBits(const Result& other) const {
    return out.memory() == other.out.memory() && lse.size() == other.lse.size() &&
           (lse.empty() || std::memcmp(lse.data(), other.lse.data(), 4 * lse.size()) == 0);
  }
};

/// A plan for a call, if any: one of the library's, or parts that a test changed.
class GivenPlan {
 public:
  GivenPlan(std::nullptr_t) {}   // NOLINT(google-explicit-constructor)
  GivenPlan(const Plan* plan) {  // NOLINT(google-explicit-constructor)
    if (plan != nullptr) plan_ = *plan;
  }
  GivenPlan(const PlanParts* parts) {  // NOLINT(google-explicit-constructor)
    if (parts != nullptr) plan_ = Pack(PlanParts(*parts));
  }
  const Plan* get() const { return plan_ ? &*plan_ : nullptr; }

 private:
  std::optional<Plan> plan_;
};

/// `kept`, where given, becomes the plan.
inline Result Attend(const Call& call, const GivenPlan& plan = nullptr,
                     Layout out_layout = Layout::kContiguous, Plan* kept = nullptr) {
  const Shape& s = call.shape;
  Result result;
  result.out =
      Tensor(call.query.dtype(), {s.batch, s.query_heads, s.queries, s.value_depth}, out_layout);
  result.lse.assign(call.rows(), std::numeric_limits<float>::quiet_NaN());
  attention(
      call.arguments(), call.options,
      {result.out.mutable_view(),
       Contiguous<void>(result.lse.data(), DType::kFloat32, {s.batch, s.query_heads, s.queries}),
       &result.statistics, kept},
      plan.get());
  return result;
}

/// The library's own float64 executor.
struct Exact {
  std::vector<double> out, lse;
};
inline Exact RunReference(const Call& call, const GivenPlan& plan = nullptr) {
  Exact exact;
  exact.out.assign(call.rows() * static_cast<std::size_t>(call.shape.value_depth), kNaN);
  exact.lse.assign(call.rows(), kNaN);
  reference(call.arguments(), call.options, exact.out.data(), exact.lse.data(), plan.get());
  return exact;
}

}  // namespace smyrf::testing
