// A test's call as a program in C writes it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "smyrf/c/smyrf.h"
#include "smyrf/methods.h"
#include "testing/call.h"
#include "testing/gradients.h"

namespace smyrf::testing {

/// A struct with nothing set but its size.
template <class T>
T Sized() {
  T made{};
  made.struct_size = sizeof(T);
  return made;
}

template <class Void>
smyrf_tensor TensorC(const BasicTensorView<Void>& view) {
  auto tensor = Sized<smyrf_tensor>();
  tensor.data = const_cast<void*>(static_cast<const void*>(view.data));
  tensor.dtype = static_cast<std::int32_t>(view.dtype);
  tensor.rank = view.rank;
  std::copy(view.shape.begin(), view.shape.end(), tensor.shape);
  std::copy(view.strides.begin(), view.strides.end(), tensor.strides);
  return tensor;
}

/// Points into itself and into the call.
class CallC {
 public:
  explicit CallC(Call from) : call(std::move(from)) {
    const Arguments arguments = call.arguments();
    c.query = Hold(arguments.query);
    c.key = Hold(arguments.key);
    c.value = Hold(arguments.value);
    c.attn_mask = Hold(arguments.attn_mask);
    c.key_padding_mask = Hold(arguments.key_padding_mask);
    c.query_padding_mask = Hold(arguments.query_padding_mask);
    const Options& options = call.options;
    c.method = options.method == Method::kAuto ? nullptr : name(options.method);
    c.is_causal = options.is_causal ? 1 : 0;
    c.enable_gqa = options.enable_gqa ? 1 : 0;
    if (options.window) {
      window_ = {options.window->left, options.window->right};
      c.window = window_.data();
    }
    if (options.positions) {
      positions_ = {options.positions->first_query, options.positions->first_key};
      c.positions = positions_.data();
    }
    c.scale = Pointer(call.options.scale);
    c.n_hashes = Pointer(call.options.n_hashes);
    c.cluster_size = Pointer(call.options.cluster_size);
    c.tolerance = Pointer(call.options.tolerance);
    c.max_density = Pointer(call.options.max_density);
    c.precision = name(call.options.precision);
    c.dropout_p = options.dropout_p;
    c.seed = options.seed;
    c.num_threads = options.num_threads;
  }
  CallC(const CallC&) = delete;
  CallC& operator=(const CallC&) = delete;
  CallC(CallC&&) = delete;
  CallC& operator=(CallC&&) = delete;
  ~CallC() = default;

  Call call;
  smyrf_call c = Sized<smyrf_call>();

 private:
  const smyrf_tensor* Hold(const std::optional<TensorView>& view) {
    if (!view) return nullptr;
    return &(tensors_.at(held_++) = TensorC(*view));
  }
  template <class T>
  static const T* Pointer(const std::optional<T>& value) {
    return value ? &*value : nullptr;
  }

  std::array<smyrf_tensor, 6> tensors_{};
  std::size_t held_ = 0;
  std::array<std::int64_t, 2> window_{}, positions_{};
};

/// out and lse of a call, and the struct that asks for them.
class OutputsC {
 public:
  explicit OutputsC(const Call& call) {
    const Shape& s = call.shape;
    result.out = Tensor(call.query.dtype(), {s.batch, s.query_heads, s.queries, s.value_depth});
    result.lse.assign(call.rows(), std::numeric_limits<float>::quiet_NaN());
    out = TensorC(result.out.mutable_view());
    lse = smyrf_lse(result.lse.data(), s.batch, s.query_heads, s.queries);
    c.out = &out;
    c.lse = &lse;
  }
  OutputsC(const OutputsC&) = delete;
  OutputsC& operator=(const OutputsC&) = delete;
  OutputsC(OutputsC&&) = delete;
  OutputsC& operator=(OutputsC&&) = delete;
  ~OutputsC() = default;

  Result result;
  smyrf_tensor out, lse;
  smyrf_outputs c = Sized<smyrf_outputs>();
};

/// Runs attention_backward from C on what `result` holds.
inline smyrf_status BackwardC(const smyrf_call& call, const OutputsC& result,
                              const Upstream& upstream, GradientTensors& gradients) {
  const auto [query, key, value] = gradients.views();
  const smyrf_tensor grad_out = TensorC(upstream.out.view());
  const smyrf_tensor grad_query = TensorC(query);
  const smyrf_tensor grad_key = TensorC(key);
  const smyrf_tensor grad_value = TensorC(value);
  smyrf_tensor grad_lse = result.lse;
  grad_lse.data = const_cast<float*>(upstream.lse.data());
  const smyrf_backward backward{sizeof(smyrf_backward),
                                &result.out,
                                &result.lse,
                                &grad_out,
                                upstream.lse.empty() ? nullptr : &grad_lse,
                                &grad_query,
                                &grad_key,
                                &grad_value};
  return smyrf_attention_backward(&call, &backward);
}

}  // namespace smyrf::testing
