// Nodes GGML_OP_FLASH_ATTN_EXT by hand, and what they must give.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "ggml.h"
#include "testing/tensor.h"

namespace smyrf::ggml::testing {

using smyrf::testing::Encoded;
using smyrf::testing::kInfinity;
using smyrf::testing::Rounded;

inline DType DTypeOf(ggml_type type) {
  return type == GGML_TYPE_F16    ? DType::kFloat16
         : type == GGML_TYPE_BF16 ? DType::kBFloat16
                                  : DType::kFloat32;
}

/// A tensor (columns, rows, heads, streams) in memory that ends with its last element, so that a
/// sanitizer sees what reads behind it.
class Tensor {
 public:
  /// `gap`: elements between rows. `heads_inside`: the heads of a row lie together, as in a cache.
  Tensor(ggml_type type, std::array<std::int64_t, 4> shape, std::int64_t gap, bool heads_inside)
      : dtype_(DTypeOf(type)), shape_(shape) {
    const std::int64_t size = SizeOf(dtype_);
    const std::int64_t row = (shape[0] + gap) * size;
    const std::array<std::int64_t, 4> bytes{size, heads_inside ? row * shape[2] : row,
                                            heads_inside ? row : row * shape[1],
                                            row * shape[1] * shape[2]};
    tensor_.type = type;
    tensor_.op = GGML_OP_NONE;
    std::int64_t last = size;
    for (std::size_t i = 0; i < 4; ++i) {
      tensor_.ne[i] = shape[i];
      tensor_.nb[i] = static_cast<std::size_t>(bytes[i]);
      last += (shape[i] - 1) * bytes[i];
    }
    data_.resize(static_cast<std::size_t>(last));
    values_.resize(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]));
    tensor_.data = data_.data();
  }

  double Get(std::int64_t c, std::int64_t i, std::int64_t h, std::int64_t s) const {
    return values_[Index(c, i, h, s)];
  }
  /// Of a float32 tensor, from its memory.
  double Read(std::int64_t c, std::int64_t i, std::int64_t h, std::int64_t s) const {
    float value = 0.0F;
    std::memcpy(&value, data_.data() + At(c, i, h, s), sizeof value);
    return value;
  }
  void Set(std::int64_t c, std::int64_t i, std::int64_t h, std::int64_t s, double value) {
    const double rounded = Rounded(value, dtype_);
    values_[Index(c, i, h, s)] = rounded;
    const std::uint32_t bits = Encoded(rounded, dtype_);
    std::memcpy(data_.data() + At(c, i, h, s), &bits, static_cast<std::size_t>(SizeOf(dtype_)));
  }
  void Fill(const std::function<double(std::int64_t i, std::int64_t c)>& value) {
    for (std::int64_t s = 0; s < tensor_.ne[3]; ++s)
      for (std::int64_t h = 0; h < tensor_.ne[2]; ++h)
        for (std::int64_t i = 0; i < tensor_.ne[1]; ++i)
          for (std::int64_t c = 0; c < tensor_.ne[0]; ++c) Set(c, i, h, s, value(i, c));
  }
  ggml_tensor& ggml() { return tensor_; }
  const ggml_tensor& ggml() const { return tensor_; }

 private:
  std::size_t At(std::int64_t c, std::int64_t i, std::int64_t h, std::int64_t s) const {
    const auto at = [](std::int64_t index) { return static_cast<std::size_t>(index); };
    return at(c) * tensor_.nb[0] + at(i) * tensor_.nb[1] + at(h) * tensor_.nb[2] +
           at(s) * tensor_.nb[3];
  }

  std::size_t Index(std::int64_t c, std::int64_t i, std::int64_t h, std::int64_t s) const {
    return static_cast<std::size_t>(((s * shape_[2] + h) * shape_[1] + i) * shape_[0] + c);
  }

  DType dtype_;
  std::array<std::int64_t, 4> shape_;
  ggml_tensor tensor_{};
  std::vector<std::byte> data_;
  std::vector<double> values_;  // (streams, heads, rows, columns)
};

struct Shape {
  std::int64_t streams = 1, heads = 4, key_heads = 2, queries = 40, keys = 96;
  std::int64_t depth = 24, value_depth = 24;
  std::int64_t mask_heads = 1, mask_streams = 1;
  ggml_type type = GGML_TYPE_F16;
};

/// Stays where it is made: its tensors point to each other.
class Node {
 public:
  /// `sees`: what the mask adds for a query and a key, at most 0; no mask where it is empty.
  using Mask = std::function<double(std::int64_t query, std::int64_t key)>;
  Node(const Shape& shape, const Mask& sees)
      : shape_(shape),
        query_(GGML_TYPE_F32, {shape.depth, shape.queries, shape.heads, shape.streams}, 3, true),
        key_(shape.type, {shape.depth, shape.keys, shape.key_heads, shape.streams}, 5, true),
        value_(shape.type, {shape.value_depth, shape.keys, shape.key_heads, shape.streams}, 0,
               false),
        mask_(GGML_TYPE_F16, {shape.keys, shape.queries, shape.mask_heads, shape.mask_streams}, 0,
              false),
        out_(GGML_TYPE_F32, {shape.value_depth, shape.heads, shape.queries, shape.streams}, 0,
             false) {
    std::mt19937_64 random(7);
    std::normal_distribution<double> normal;
    for (Tensor* tensor : {&query_, &key_, &value_})
      tensor->Fill([&](std::int64_t, std::int64_t) { return normal(random); });
    if (sees) mask_.Fill(sees);
    out_.Fill([](std::int64_t, std::int64_t) { return smyrf::testing::kNaN; });
    ggml_tensor& node = out_.ggml();
    node.op = GGML_OP_FLASH_ATTN_EXT;
    node.flags = GGML_TENSOR_FLAG_COMPUTE;
    node.src[0] = &query_.ggml();
    node.src[1] = &key_.ggml();
    node.src[2] = &value_.ggml();
    node.src[3] = sees ? &mask_.ggml() : nullptr;
    const float scale = 0.25F;
    std::memcpy(node.op_params, &scale, sizeof scale);
  }

  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  Node(Node&&) = delete;
  Node& operator=(Node&&) = delete;
  ~Node() = default;

  ggml_tensor& ggml() { return out_.ggml(); }
  /// The largest |out - exact|; NaN where one of out is.
  double Error() const {
    double largest = 0.0;
    for (std::int64_t s = 0; s < shape_.streams; ++s)
      for (std::int64_t h = 0; h < shape_.heads; ++h)
        for (std::int64_t i = 0; i < shape_.queries; ++i) {
          const std::vector<double> exact = Exact(s, h, i);
          for (std::int64_t c = 0; c < shape_.value_depth; ++c) {
            const double error =
                std::abs(out_.Read(c, h, i, s) - exact[static_cast<std::size_t>(c)]);
            if (!(error <= largest)) largest = error;
          }
        }
    return largest;
  }

 private:
  std::vector<double> Exact(std::int64_t s, std::int64_t h, std::int64_t i) const {
    const std::int64_t key_head = h / (shape_.heads / shape_.key_heads);
    std::vector<double> out(static_cast<std::size_t>(shape_.value_depth));
    double total = 0.0;
    for (std::int64_t j = 0; j < shape_.keys; ++j) {
      double logit = 0.0;
      for (std::int64_t c = 0; c < shape_.depth; ++c)
        logit += 0.25 * query_.Get(c, i, h, s) * key_.Get(c, j, key_head, s);
      if (out_.ggml().src[3] != nullptr)
        logit += mask_.Get(j, i, h % shape_.mask_heads, s % shape_.mask_streams);
      const double weight = std::exp(logit);
      total += weight;
      for (std::int64_t c = 0; c < shape_.value_depth; ++c)
        out[static_cast<std::size_t>(c)] += weight * value_.Get(c, j, key_head, s);
    }
    for (double& x : out) x = total > 0.0 ? x / total : 0.0;
    return out;
  }

  Shape shape_;
  Tensor query_, key_, value_, mask_, out_;
};

}  // namespace smyrf::ggml::testing
