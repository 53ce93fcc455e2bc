#include "attention.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <vector>

#include "mask.h"

namespace smyrf::ggml {
namespace {

// Below so many queries ggml's own attention is as quick, and one query must stay with it: with
// `-fa auto` llama.cpp asks by a graph of one token whether attention runs where the cache lies.
constexpr std::int64_t kFewQueries = 16;
// A chunk's earlier keys go by `tree` from kAutoRows keys and so many pairs on: its queries pay for
// planning. Measured: 512 queries break even at 4608 keys, 1024 at 2048.
constexpr std::int64_t kTreePairs = std::int64_t{512} * 4608;
// Groups with fewer rows than this, in the mean, are done together through their mask.
constexpr std::int64_t kRowsAGroup = 16;

enum Source { kQuery, kKey, kValue, kMask, kSinks };

struct Parameters {
  float scale, max_bias, soft_cap;
};

Parameters Read(const ggml_tensor& node) {
  Parameters parameters{};
  static_assert(sizeof parameters == 3 * sizeof(float));
  std::memcpy(&parameters, node.op_params, sizeof parameters);
  return parameters;
}

bool HasRows(const ggml_tensor& tensor) {
  const std::size_t size = tensor.type == GGML_TYPE_F32 ? 4 : 2;
  return (tensor.type == GGML_TYPE_F32 || tensor.type == GGML_TYPE_F16 ||
          tensor.type == GGML_TYPE_BF16) &&
         tensor.nb[0] == size && tensor.nb[1] % size == 0 && tensor.nb[2] % size == 0 &&
         tensor.nb[3] % size == 0 && tensor.ne[0] >= 1 && tensor.ne[0] <= kMaxHeadDimension;
}

/// Whether a node is as ggml makes it: (Dv, heads, queries, streams), contiguous.
bool HasAnswer(const ggml_tensor& node) {
  const ggml_tensor& query = *node.src[kQuery];
  const std::array<std::int64_t, 4> shape{node.src[kValue]->ne[0], query.ne[2], query.ne[1],
                                          query.ne[3]};
  std::size_t stride = sizeof(float);
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (node.ne[i] != shape[i] || node.nb[i] != stride) return false;
    stride *= static_cast<std::size_t>(shape[i]);
  }
  return node.type == GGML_TYPE_F32;
}

DType TypeOf(const ggml_tensor& tensor) {
  switch (tensor.type) {
    case GGML_TYPE_F16:
      return DType::kFloat16;
    case GGML_TYPE_BF16:
      return DType::kBFloat16;
    default:
      return DType::kFloat32;
  }
}

/// Rows [first, end) of one stream as (1, heads, rows, D). `rows` and `heads` are the tensor's
/// dimensions of rows and heads.
template <class Void>
BasicTensorView<Void> View(Void* data, const ggml_tensor& tensor, int rows, int heads,
                           std::int64_t stream, std::int64_t first, std::int64_t end) {
  const auto bytes = [&](int i) { return static_cast<std::int64_t>(tensor.nb[i]); };
  const std::int64_t offset = stream * bytes(3) + first * bytes(rows);
  const std::int64_t size = SizeOf(TypeOf(tensor));
  BasicTensorView<Void> view;
  if constexpr (std::is_const_v<Void>) {
    view.data = static_cast<const std::byte*>(data) + offset;
  } else {
    view.data = static_cast<std::byte*>(data) + offset;
  }
  view.dtype = TypeOf(tensor);
  view.rank = 4;
  view.shape = {1, tensor.ne[heads], end - first, tensor.ne[0]};
  view.strides = {0, bytes(heads) / size, bytes(rows) / size, 1};
  return view;
}

class Call {
 public:
  Call(const ggml_tensor& node, const Settings& settings, int num_threads)
      : node_(node), settings_(settings), threads_(num_threads) {}

  void Run() {
    for (std::int64_t stream = 0; stream < node_.src[kQuery]->ne[3]; ++stream) {
      for (const Group& group : Groups(stream)) Attend(stream, group);
    }
  }

 private:
  std::vector<Group> Groups(std::int64_t stream) const {
    const ggml_tensor* mask = node_.src[kMask];
    const Group whole{.kind = mask == nullptr ? Group::Kind::kRectangle : Group::Kind::kMask,
                      .end_row = node_.src[kQuery]->ne[1],
                      .end_key = node_.src[kKey]->ne[1]};
    if (mask == nullptr || mask->ne[2] != 1) return {whole};
    const auto* data = static_cast<const std::byte*>(mask->data) +
                       stream % mask->ne[3] * static_cast<std::int64_t>(mask->nb[3]);
    auto groups =
        Recognise({data, static_cast<std::int64_t>(mask->nb[1]), whole.rows(), whole.keys()},
                  smyrf::Run(threads_));
    if (static_cast<std::int64_t>(groups.size()) * kRowsAGroup >
        std::max(kRowsAGroup, whole.rows())) {
      return {whole};
    }
    return groups;
  }

  void Attend(std::int64_t stream, const Group& group) {
    switch (group.kind) {
      case Group::Kind::kNothing:
        return Clear(stream, group);
      case Group::Kind::kRectangle:
        return Compute(stream, group, settings_.method, Out(stream, group), nullptr);
      case Group::Kind::kMask:
        return Compute(stream, group, Method::kDense, Out(stream, group), nullptr);
      case Group::Kind::kCausal:
        break;
    }
    // Keys that all rows see are a rectangle without a mask; the rest is the chunk's own keys.
    Group earlier = group;
    earlier.kind = Group::Kind::kRectangle;
    earlier.end_key = group.end_key - group.rows();
    const bool tree = settings_.method != Method::kDense && settings_.tolerance > 0.0 &&
                      group.window < 0 && earlier.keys() >= kAutoRows &&
                      group.rows() * earlier.keys() >= kTreePairs;
    if (!tree) return Compute(stream, group, Method::kDense, Out(stream, group), nullptr);
    Group own = group;
    own.first_key = earlier.end_key;
    const std::int64_t heads = node_.ne[1];
    const std::int64_t depth = node_.ne[0];
    const auto floats = [](std::int64_t count) {
      return std::vector<float>(static_cast<std::size_t>(count));
    };
    const std::int64_t rows = heads * group.rows();
    std::vector<float> lse = floats(rows);
    std::vector<float> other_lse = floats(rows);
    std::vector<float> other = floats(rows * depth);
    const auto out = Out(stream, group);
    // Rows by (position, head), as the node's own: heads of a row lie together.
    auto other_out =
        Contiguous<void>(other.data(), DType::kFloat32, {1, heads, group.rows(), depth});
    other_out.strides = {0, depth, heads * depth, 1};
    Compute(stream, own, Method::kDense, out, lse.data());
    Compute(stream, earlier, Method::kTree, other_out, other_lse.data());
    merge(out, Lse(lse.data(), group), ReadOnly(other_out), ReadOnly(Lse(other_lse.data(), group)),
          threads_);
  }

  MutableTensorView Lse(float* data, const Group& group) const {
    return Contiguous<void>(data, DType::kFloat32, {1, node_.ne[1], group.rows()});
  }

  static TensorView ReadOnly(const MutableTensorView& view) {
    return {view.data, view.dtype, view.rank, view.shape, view.strides};
  }

  MutableTensorView Out(std::int64_t stream, const Group& group) const {
    return View<void>(node_.data, node_, 2, 1, stream, group.first_row, group.end_row);
  }

  TensorView Input(Source source, std::int64_t stream, std::int64_t first, std::int64_t end) const {
    const ggml_tensor& tensor = *node_.src[source];
    return View<const void>(tensor.data, tensor, 1, 2, stream, first, end);
  }

  void Compute(std::int64_t stream, const Group& group, Method method, const MutableTensorView& out,
               float* lse) {
    const auto begin = std::chrono::steady_clock::now();
    Arguments arguments{.query = Input(kQuery, stream, group.first_row, group.end_row),
                        .key = Input(kKey, stream, group.first_key, group.end_key),
                        .value = Input(kValue, stream, group.first_key, group.end_key)};
    Options options{.method = method,
                    .scale = Read(node_).scale,
                    .is_causal = group.kind == Group::Kind::kCausal,
                    .enable_gqa = true,
                    .precision = Precision::kFloat32,  // others were not measured inside a host
                    .num_threads = threads_};
    if (method != Method::kDense) options.tolerance = settings_.tolerance;
    if (group.window >= 0) options.window = Window{group.window, -1};
    if (group.kind == Group::Kind::kMask) arguments.attn_mask = Mask(stream, group);
    Outputs outputs{.out = out};
    if (lse != nullptr) outputs.lse = Lse(lse, group);
    Statistics statistics;
    if (settings_.log) outputs.statistics = &statistics;
    attention(arguments, options, outputs);
    if (settings_.log) {
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      CountCall(statistics.method, group.rows() * group.keys(), statistics, seconds.count());
    }
  }

  TensorView Mask(std::int64_t stream, const Group& group) const {
    const ggml_tensor& mask = *node_.src[kMask];
    TensorView view = View<const void>(mask.data, mask, 1, 2, stream % mask.ne[3], group.first_row,
                                       group.end_row);
    view.data = static_cast<const std::byte*>(view.data) + 2 * group.first_key;
    view.shape[3] = group.keys();
    if (view.shape[1] == 1) {
      view.strides[1] = 0;
    } else {  // head h takes mask h modulo their number
      view.shape[1] = node_.ne[1];
    }
    return view;
  }

  void Clear(std::int64_t stream, const Group& group) const {
    auto* data =
        static_cast<std::byte*>(node_.data) + stream * static_cast<std::int64_t>(node_.nb[3]);
    for (std::int64_t i = group.first_row; i < group.end_row; ++i) {
      std::memset(data + i * static_cast<std::int64_t>(node_.nb[2]), 0,
                  static_cast<std::size_t>(node_.ne[0] * node_.ne[1]) * sizeof(float));
    }
  }

  const ggml_tensor& node_;
  const Settings& settings_;
  const int threads_;
};

}  // namespace

bool Takes(const ggml_tensor& node) {
  if (node.op != GGML_OP_FLASH_ATTN_EXT) return false;
  const ggml_tensor* query = node.src[kQuery];
  const ggml_tensor* key = node.src[kKey];
  const ggml_tensor* value = node.src[kValue];
  const ggml_tensor* mask = node.src[kMask];
  const Parameters parameters = Read(node);
  if (parameters.max_bias != 0.0F || parameters.soft_cap != 0.0F || node.src[kSinks] != nullptr) {
    return false;
  }
  if (mask != nullptr &&
      (mask->type != GGML_TYPE_F16 || mask->nb[0] != 2 || mask->ne[0] < key->ne[1] ||
       (mask->ne[2] != 1 && mask->ne[2] != query->ne[2]) || mask->ne[1] < query->ne[1])) {
    return false;
  }
  return HasAnswer(node) && query->type == GGML_TYPE_F32 && HasRows(*query) && HasRows(*key) &&
         HasRows(*value) && key->type == value->type && key->ne[2] == value->ne[2] &&
         key->ne[3] == query->ne[3] && value->ne[3] == query->ne[3] && key->ne[1] == value->ne[1] &&
         key->ne[1] >= 1 && key->ne[0] == query->ne[0] && query->ne[1] >= kFewQueries &&
         key->ne[2] >= 1 && query->ne[2] % key->ne[2] == 0;
}

void Attend(const ggml_tensor& node, const Settings& settings, int num_threads) {
  Call(node, settings, num_threads).Run();
}

}  // namespace smyrf::ggml
