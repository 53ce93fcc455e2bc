// What must hold for every call, whatever its bytes were.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fuzzed_call.h"
#include "testing/bounds.h"
#include "testing/gradients.h"

namespace smyrf::fuzz {

using testing::Exact;
using testing::Result;

/// Ends the process where `holds` is false: libFuzzer then keeps the input.
inline void Require(bool holds, const Call& call, const std::string& what) {
  if (holds) return;
  std::cerr << "contract broken: " << what << "\n  of " << call << "\n ";
  for (const auto& [name, tensor] :
       {std::pair{"query", &call.query}, {"key", &call.key}, {"value", &call.value}}) {
    double largest = 0.0;
    bool finite = true;
    tensor->ForEach([&, rows = tensor](auto... at) {
      const double x = std::abs(rows->at(at...));
      finite = finite && std::isfinite(x);
      if (std::isfinite(x)) largest = std::max(largest, x);
    });
    std::cerr << ' ' << name << " up to " << largest << (finite ? "" : " and not finite");
  }
  std::cerr << std::endl;
  std::abort();
}
inline void Require(const ::testing::AssertionResult& result, const Call& call, const char* what) {
  if (!result) Require(false, call, std::string(what) + ": " + result.message());
}

/// A message names the argument; nothing may have been written.
inline void RequireRefusal(const Call& call, const Error& error, bool untouched) {
  const std::string message = error.what();
  Require(message.find(": ") != std::string::npos, call, "message without a name: " + message);
  Require(untouched, call, "written before it was refused: " + message);
}

/// What rows of lse hold before a call.
inline constexpr float kUnwritten = 12345.0F;

/// The result, or nothing where the call was refused.
inline std::optional<Result> Run(const Call& call, Layout layout,
                                 const testing::GivenPlan& plan = nullptr) {
  const Shape& s = call.shape;
  Result result;
  result.out =
      Tensor(call.query.dtype(), {s.batch, s.query_heads, s.queries, s.value_depth}, layout);
  const std::vector<std::byte> before = result.out.memory();
  result.lse.assign(call.rows(), kUnwritten);
  const MutableTensorView lse =
      Contiguous<void>(result.lse.data(), DType::kFloat32, {s.batch, s.query_heads, s.queries});
  try {
    attention(call.arguments(), call.options, {result.out.mutable_view(), lse, &result.statistics},
              plan.get());
  } catch (const Error& error) {
    RequireRefusal(
        call, error,
        result.out.memory() == before && std::all_of(result.lse.begin(), result.lse.end(),
                                                     [](float x) { return x == kUnwritten; }));
    return std::nullopt;
  }
  Require(result.out.GapsUntouched(), call, "written between the rows of out");
  return result;
}

/// Largest sizes over the rows that take part.
struct Sizes {
  double query = 0.0, key = 0.0, value = 0.0;  ///< largest element
  double logit = 0.0;                          ///< bound of |scale q.k|
  double bias = 0.0;
  bool finite = true;

  explicit Sizes(const Call& call) {
    const Shape& s = call.shape;
    const auto row = [&](const Tensor& tensor, std::int64_t b, std::int64_t h, std::int64_t i,
                         double& element) {
      for (std::int64_t c = 0; c < tensor.shape()[3]; ++c) {
        const double x = std::abs(tensor.at(b, h, i, c));
        finite = finite && std::isfinite(x);
        element = std::max(element, x);
      }
    };
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t h = 0; h < s.query_heads; ++h) {
        for (std::int64_t i = 0; i < s.queries; ++i) {
          if (call.IsValidQuery(b, i)) row(call.query, b, h, i, query);
        }
      }
      for (std::int64_t h = 0; h < s.key_heads; ++h) {
        for (std::int64_t j = 0; j < s.keys; ++j) {
          if (!call.IsValidKey(b, j)) continue;
          row(call.key, b, h, j, key);
          row(call.value, b, h, j, value);
        }
      }
    }
    if (call.attn_mask) {
      call.attn_mask->ForEach([&](auto... at) {
        const double x = call.attn_mask->at(at...);
        finite = finite && (std::isfinite(x) || x == -testing::kInfinity);
        if (std::isfinite(x)) bias = std::max(bias, std::abs(x));
      });
    }
    logit = std::abs(call.scale()) * query * key * static_cast<double>(s.depth);
  }

  /// Far from where float32 overflows or its subnormal numbers matter.
  bool Ordinary() const {
    return finite && query < 1e5 && key < 1e5 && value < 1e5 && logit < 1e4 && bias < 1e4;
  }
};

inline bool IsNaNRow(const Call& call, const Result& result, std::int64_t b, std::int64_t h,
                     std::int64_t i) {
  bool all = std::isnan(result.lse[call.Row(b, h, i)]);
  for (std::int64_t c = 0; c < call.shape.value_depth; ++c) {
    all = all && std::isnan(result.out.at(b, h, i, c));
  }
  return all;
}

/// Rows that see nothing are 0 and -inf; a head of `lsh` or `tree` is NaN if and only if a valid
/// query or key of it is not finite, and statistics say so.
inline void RequireDefinedRows(const Call& call, const Result& result) {
  const Method method = result.statistics.method;
  call.ForEachRow([&](auto b, auto h, auto i) {
    if (!call.SeesNothing(b, h, i)) return;
    bool zero = result.lse[call.Row(b, h, i)] == -testing::kInfinity;
    for (std::int64_t c = 0; c < call.shape.value_depth; ++c) {
      zero = zero && result.out.at(b, h, i, c) == 0.0;
    }
    Require(zero, call, "a row that sees nothing is not 0 and -inf");
  });
  if (method == Method::kDense) return;
  const auto finite = [](const Tensor& tensor, auto b, auto h, auto i) {
    return std::isfinite(tensor.RowNorm(b, h, i));
  };
  for (std::int64_t b = 0; b < call.shape.batch; ++b) {
    for (std::int64_t h = 0; h < call.shape.query_heads; ++h) {
      bool sees = false;
      bool all_finite = true;
      for (std::int64_t j = 0; j < call.shape.keys; ++j) {
        if (!call.IsValidKey(b, j)) continue;
        sees = true;
        all_finite = all_finite && finite(call.key, b, call.KeyHead(h), j);
      }
      bool asks = false;
      for (std::int64_t i = 0; i < call.shape.queries; ++i) {
        if (!call.IsValidQuery(b, i)) continue;
        asks = true;
        all_finite = all_finite && finite(call.query, b, h, i);
      }
      if (!sees || !asks) continue;
      const auto at = static_cast<std::size_t>(b * call.shape.query_heads + h);
      Require(result.statistics.heads[at].non_finite == !all_finite, call,
              "non_finite in the statistics of head " + std::to_string(at));
      for (std::int64_t i = 0; i < call.shape.queries && !all_finite; ++i) {
        if (!call.IsValidQuery(b, i)) continue;
        Require(IsNaNRow(call, result, b, h, i), call, "a head that is not finite is not NaN");
      }
    }
  }
}

inline void RequireStatistics(const Call& call, const Result& result, bool ordinary) {
  const Statistics& statistics = result.statistics;
  Require(statistics.method != Method::kAuto && !statistics.reason.empty(), call,
          "no method named");
  Require(std::ssize(statistics.heads) == call.shape.batch * call.shape.query_heads, call,
          "number of heads in statistics");
  for (const Statistics::Head& head : statistics.heads) {
    Require(std::isfinite(head.density) && head.density >= 0.0, call, "density");
    Require(!ordinary || (head.expected_error >= 0.0 && head.expected_lse_error >= 0.0), call,
            "expected errors");
  }
}

/// Every row is a mean of its values by weights that are positive, whatever was summarised; lse
/// lies between the smallest logit and what the largest could add up to. A summary adds at most
/// sqrt(2 u ln n) to its mean logit, and the variance u of its logits is at most logit^2.
inline void RequireMeans(const Call& call, const Result& result, const Sizes& sizes) {
  if (call.shape.keys == 0) return;
  const double slack = 1e-3 + 1e-3 * sizes.logit;
  const double log_keys = std::log(static_cast<double>(call.shape.keys));
  const double most =
      1.1 * sizes.logit * std::sqrt(2.0 * log_keys) + sizes.logit + log_keys + slack;
  const double rounding = 1e-4 + 2.0 * testing::UnitRoundoff(call.query.dtype());
  call.ForEachRow([&](auto b, auto h, auto i) {
    if (call.SeesNothing(b, h, i)) return;
    const double lse = result.lse[call.Row(b, h, i)];
    Require(lse >= -sizes.logit - slack && lse <= most, call, "lse out of bounds");
    for (std::int64_t c = 0; c < call.shape.value_depth; ++c) {
      Require(std::abs(result.out.at(b, h, i, c)) <= sizes.value * (1.0 + rounding) + 1e-7, call,
              "out is no mean of values");
    }
  });
}

inline Call AsDense(Call call) {
  Options options;
  options.method = Method::kDense;
  options.scale = call.options.scale;
  options.enable_gqa = call.options.enable_gqa;
  call.options = options;
  return call;
}

/// Everything that must hold for the result of a call without a plan.
inline void RequireContract(const Call& call, const Result& result) {
  const Sizes sizes(call);
  RequireStatistics(call, result, sizes.Ordinary());
  RequireDefinedRows(call, result);
  if (!sizes.Ordinary()) return;
  if (result.statistics.method != Method::kTree) {
    const auto merges = static_cast<double>(call.options.n_hashes.value_or(kDefaultHashes));
    Require(testing::Close(call, result, testing::RunReference(call),
                           result.statistics.method == Method::kLsh ? merges : 0.0),
            call, "far from the reference");
    return;
  }
  RequireMeans(call, result, sizes);
  const auto& heads = result.statistics.heads;
  if (std::all_of(heads.begin(), heads.end(), [](const auto& head) { return head.dense; })) {
    Require(testing::Close(call, result, testing::RunReference(AsDense(call)), 0.0), call,
            "all heads are done as dense, but far from it");
  }
}

/// What must hold for the gradients of a call without a plan. Those of `tree` have steps where
/// variances are 0, as they are in many of these calls: tests compare them on others.
inline void RequireGradients(const Call& call, const Result& result,
                             const testing::Upstream& upstream,
                             const testing::GradientTensors& got) {
  Require(got.query.GapsUntouched() && got.key.GapsUntouched() && got.value.GapsUntouched(), call,
          "written between the rows of gradients");
  const Sizes sizes(call);
  const bool finite = sizes.finite && sizes.logit < 20.0 && sizes.bias < 20.0;
  double largest = std::max({sizes.query, sizes.key, sizes.value});
  upstream.out.ForEach([&](auto... at) {
    const double x = std::abs(upstream.out.at(at...));
    largest = std::isfinite(x) ? std::max(largest, x) : testing::kInfinity;
  });
  if (!finite || largest > 20.0 || result.statistics.method == Method::kTree) return;
  // Products of subnormal values lose their digits, which a large scale would make up for.
  if (sizes.value < 1e-30 && sizes.value > 0.0) return;
  Require(testing::CloseGradients(call, got, testing::ReferenceBackward(call, upstream), upstream),
          call, "gradients far from the reference");
}

/// Every row is written; and of what `dense` and `lsh` evaluate by a plan, the executor makes what
/// the reference makes. (Constants of `tree` that were damaged may be of any size.)
inline void RequireReferenceOfPlan(const Call& call, const Result& result, const PlanParts& made) {
  for (const float lse : result.lse) Require(lse != kUnwritten, call, "a row was not written");
  const Exact exact = testing::RunReference(call, &made);
  const bool same_padding = made.valid_queries.empty() == !call.query_padding_mask &&
                            made.valid_keys.empty() == !call.key_padding_mask;
  if (made.method == Method::kTree || !same_padding || !Sizes(call).Ordinary()) return;
  Call as_planned = call;  // whose masks tell which rows see nothing
  as_planned.options.is_causal = made.is_causal;
  as_planned.options.window = made.window;
  as_planned.options.positions = made.positions;
  Require(testing::Close(as_planned, result, exact, static_cast<double>(made.rounds())), call,
          "far from the reference of a damaged plan");
}

/// The same `tree` plan with every key exact in every block.
inline PlanParts Opened(PlanParts made) {
  for (std::int64_t b = 0; b < made.batch; ++b) {
    for (std::int64_t h = 0; h < made.query_heads; ++h) {
      HeadPlan& head = made.heads[static_cast<std::size_t>(b * made.query_heads + h)];
      const KeyForest& tree = made.forest(b, h / (made.query_heads / made.key_heads));
      head.nodes.clear();
      head.ranges = {{0, static_cast<std::int32_t>(tree.key_order.size())}};
      for (QueryBlock& block : head.blocks) {
        block.first_range = block.first_node = block.last_node = 0;
        block.last_range = 1;
      }
    }
  }
  return made;
}

/// For every block, each valid key once: in a range or under one node.
inline void RequireCover(const Call& call, const PlanParts& made) {
  for (std::int64_t b = 0; b < made.batch; ++b) {
    for (std::int64_t h = 0; h < made.query_heads; ++h) {
      const HeadPlan& head = made.head(0, b, h);
      const KeyForest& tree = made.forest(b, call.KeyHead(h));
      for (const QueryBlock& block : head.blocks) {
        std::vector<int> covered(tree.key_order.size());
        const auto cover = [&](std::int32_t begin, std::int32_t end) {
          for (std::int32_t j = begin; j < end; ++j) ++covered.at(static_cast<std::size_t>(j));
        };
        for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
          cover(head.ranges.at(r).begin, head.ranges[r].end);
        }
        for (std::uint32_t n = block.first_node; n < block.last_node; ++n) {
          const Node& node = tree.nodes.at(static_cast<std::size_t>(head.nodes.at(n)));
          cover(node.begin, node.end);
        }
        Require(std::all_of(covered.begin(), covered.end(), [](int n) { return n == 1; }), call,
                "a block does not cover every key once");
      }
    }
  }
}

/// A plan carried out later, compared with `direct`, the call that makes its own.
inline void RequirePlanned(const Call& call, const PlanParts& made, const Result& direct,
                           Layout layout) {
  const std::optional<Result> planned = Run(call, layout, &made);
  Require(planned.has_value(), call, "the call's own plan was refused");
  if (made.method != Method::kTree) {
    Require(planned->SameBits(direct), call, "a plan has other bits than its call");
    return;
  }
  RequireCover(call, made);
  RequireDefinedRows(call, *planned);
  const Sizes sizes(call);
  if (!sizes.Ordinary()) return;
  RequireMeans(call, *planned, sizes);
  const PlanParts opened = Opened(made);
  const std::optional<Result> dense = Run(call, layout, &opened);
  Require(dense.has_value(), call, "a plan whose nodes are all opened was refused");
  Require(testing::Close(call, *dense, testing::RunReference(AsDense(call)), 0.0), call,
          "a plan whose nodes are all opened is far from dense");
}

}  // namespace smyrf::fuzz
