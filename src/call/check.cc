#include "call/check.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>

#include "base/message.h"
#include "call/overlap.h"

namespace smyrf {
namespace {

template <class Void>
void CheckMemory(const char* name, const BasicTensorView<Void>& view) {
  if (SizeOf(view.dtype) == 0) {
    Fail(ErrorKind::kType, name, ": got dtype number ", static_cast<int>(view.dtype),
         ", which is none");
  }
  double reach = static_cast<double>(SizeOf(view.dtype));
  for (std::size_t i = 0; i < static_cast<std::size_t>(view.rank); ++i) {
    if (view.shape[i] == 0) return;
    reach += static_cast<double>(view.shape[i] - 1) *
             std::abs(static_cast<double>(view.strides[i])) *
             static_cast<double>(SizeOf(view.dtype));
  }
  // Offsets and addresses below it don't overflow.
  if (reach > 0x1p61) {
    Fail(ErrorKind::kValue, name, ": its strides reach over ", reach,
         " bytes, more than any memory; pass a copy");
  }
  if (view.data == nullptr) Fail(ErrorKind::kValue, name, ": got a null pointer for ", Shape(view));
  if (reinterpret_cast<std::uintptr_t>(view.data) %
          static_cast<std::uintptr_t>(SizeOf(view.dtype)) !=
      0) {
    Fail(ErrorKind::kValue, name, ": its memory is not aligned to its elements of ",
         SizeOf(view.dtype), " bytes; pass a copy");
  }
}

/// Later code multiplies such counts without a look, and a stride of 0 makes any of them possible.
/// An empty dimension counts as 1: the others are multiplied too.
void CheckRowCount(const char* name, std::int64_t batch, std::int64_t heads, std::int64_t rows) {
  double count = 1.0;
  for (const std::int64_t size : {batch, heads, rows}) {
    count *= static_cast<double>(std::max<std::int64_t>(1, size));
  }
  if (count > kMaxAllRows) {
    Fail(ErrorKind::kValue, name, ": got ", batch, " x ", heads, " x ", rows,
         " rows (batch x heads x N), at most ", kMaxAllRows, "; pass fewer at a time");
  }
}

template <class Void>
void CheckRows(const char* name, const BasicTensorView<Void>& view) {
  if (view.rank != 4) {
    Fail(ErrorKind::kType, name, ": got ", view.rank, " dimensions ", Shape(view),
         ", expected 4: (batch, heads, N, head dimension), or (batch, N, heads, head dimension) "
         "with layout BNHD");
  }
  if (view.dtype == DType::kBool) {
    Fail(ErrorKind::kType, name, ": got dtype bool, expected float32, float16 or bfloat16");
  }
  for (const std::int64_t size : view.shape) {
    if (size < 0) {
      Fail(ErrorKind::kValue, name, ": got shape ", Shape(view), ", sizes must be 0 or more");
    }
  }
  if (view.shape[3] > 1 && view.strides[3] != 1) {
    Fail(ErrorKind::kValue, name, ": the last dimension must be contiguous, got stride ",
         view.strides[3], "; pass a contiguous copy");
  }
  if (view.shape[2] > kMaxRows) {
    Fail(ErrorKind::kValue, name, ": got N = ", view.shape[2], ", at most ", kMaxRows);
  }
  CheckRowCount(name, view.shape[0], view.shape[1], view.shape[2]);
  CheckMemory(name, view);
}

/// The stride of a single index means nothing and may be any number: nobody shall compute with it.
TensorView WithoutIdleStrides(TensorView view) {
  for (std::size_t i = 0; i < 3; ++i) {
    if (view.shape[i] <= 1) view.strides[i] = 0;
  }
  return view;
}

void CheckDepth(const char* name, std::int64_t depth) {
  if (depth < 1 || depth > kMaxHeadDimension) {
    Fail(ErrorKind::kValue, name, ": got head dimension ", depth, ", accepted are 1 to ",
         kMaxHeadDimension);
  }
}

void CheckSameDtype(const char* name, DType dtype, DType expected, const char* other = "query") {
  if (dtype != expected) {
    Fail(ErrorKind::kType, name, ": got dtype ", Name(dtype), ", expected ", Name(expected),
         " like ", other, "; convert one of them");
  }
}

void CheckPadding(const char* name, const char* rows, const std::optional<TensorView>& mask,
                  std::int64_t batch, std::int64_t length) {
  if (!mask) return;
  if (mask->dtype != DType::kBool) {
    Fail(ErrorKind::kType, name, ": got dtype ", Name(mask->dtype),
         ", expected bool with True where a row is valid");
  }
  if (mask->rank != 2 || mask->shape[0] != batch || mask->shape[1] != length) {
    Fail(ErrorKind::kValue, name, ": got shape ", Shape(*mask), ", expected (", batch, ", ", length,
         ") = (batch, ", rows, ")");
  }
  CheckMemory(name, *mask);
}

TensorView Broadcast(const TensorView& mask, const std::array<std::int64_t, 4>& target) {
  const auto expected = [&] {
    return Message("broadcastable to (", target[0], ", ", target[1], ", ", target[2], ", ",
                   target[3], ") = (batch, query heads, Nq, Nk)");
  };
  if (mask.rank < 1 || mask.rank > 4) {
    Fail(ErrorKind::kType, "attn_mask: got ", mask.rank, " dimensions, expected 1 to 4, ",
         expected());
  }
  TensorView wide = mask;
  wide.rank = 4;
  for (int i = 3; i >= 0; --i) {
    const auto to = static_cast<std::size_t>(i);
    const int from = i - (4 - mask.rank);
    const std::int64_t size = from < 0 ? 1 : mask.shape[static_cast<std::size_t>(from)];
    if (size != 1 && size != target[to]) {
      Fail(ErrorKind::kValue, "attn_mask: got shape ", Shape(mask), ", expected a shape ",
           expected());
    }
    wide.shape[to] = target[to];
    wide.strides[to] = size == 1 ? 0 : mask.strides[static_cast<std::size_t>(from)];
  }
  CheckMemory("attn_mask", mask);
  return wide;
}

void CheckWindow(const std::optional<Window>& window) {
  if (!window) return;
  for (const auto& [side, value] : {std::pair{"left", window->left}, {"right", window->right}}) {
    if (value < -1) {
      Fail(ErrorKind::kValue, "window: got ", side, " = ", value,
           ", accepted are 0 and more, or -1 for no bound");
    }
  }
}

void CheckPosition(const char* name, std::int64_t first, std::int64_t rows) {
  if (IsPosition(first, rows)) return;
  Fail(ErrorKind::kValue, "positions: got ", name, " = ", first, ", accepted are 0 to ",
       kMaxRows - rows, " for ", rows, " rows: positions are from 0 up and below 2^31");
}

template <class Void>
void CheckRowsLike(const char* name, const BasicTensorView<Void>& view, const Problem& problem,
                   const std::array<std::int64_t, 4>& expected, const char* meaning) {
  CheckRows(name, view);
  CheckSameDtype(name, view.dtype, problem.query.dtype);
  if (view.shape != expected) {
    Fail(ErrorKind::kValue, name, ": got shape ", Shape(view), ", expected (", expected[0], ", ",
         expected[1], ", ", expected[2], ", ", expected[3], ") = ", meaning);
  }
}

template <class Void>
TensorView ReadOnly(const BasicTensorView<Void>& view) {
  return {view.data, view.dtype, view.rank, view.shape, view.strides};
}

template <class Void>
void CheckApart(const char* name, const MutableTensorView& output, const char* other_name,
                const BasicTensorView<Void>& other) {
  const Sharing sharing = SharedMemory(ReadOnly(output), ReadOnly(other));
  if (sharing == Sharing::kNone) return;
  Fail(ErrorKind::kValue, name, sharing == Sharing::kSome ? ": overlaps" : ": may overlap",
       " the memory of ", other_name,
       sharing == Sharing::kSome ? "" : " (their strides are too irregular to tell)",
       "; pass a tensor of its own");
}

/// An output apart from every input that is read while it is written.
void CheckApart(const char* name, const MutableTensorView& output, const Problem& problem) {
  for (const auto& [input_name, input] : {std::pair{"query", problem.query},
                                          {"key", problem.key},
                                          {"value", problem.value},
                                          {"attn_mask", problem.mask.bias}}) {
    if (input.data != nullptr) CheckApart(name, output, input_name, input);
  }
}

/// No element of an output twice: by growing stride, each dimension steps past all that the smaller
/// ones reach.
void CheckRowsApart(const char* name, const MutableTensorView& out) {
  std::array<std::size_t, 4> by_stride{3, 2, 1, 0};  // equal strides: the outer one is wrong
  const auto step_of = [&](std::size_t i) {
    return out.shape[i] > 1 ? std::abs(out.strides[i]) : std::int64_t{0};
  };
  std::stable_sort(by_stride.begin(), by_stride.end(),
                   [&](std::size_t a, std::size_t b) { return step_of(a) < step_of(b); });
  if (std::find(out.shape.begin(), out.shape.end(), 0) != out.shape.end()) return;
  std::int64_t reach = 0;
  for (const std::size_t i : by_stride) {
    if (out.shape[i] == 1) continue;
    const std::int64_t step = step_of(i);
    if (step <= reach) {
      Fail(ErrorKind::kValue, name, ": dimension ", i, " has stride ", out.strides[i],
           ", so its rows overlap each other; pass a tensor with memory of its own");
    }
    reach += (out.shape[i] - 1) * step;
  }
}

/// Contiguous float32 over the first three dimensions of `rows`.
template <class Void>
void CheckLse(const char* name, const BasicTensorView<Void>& view,
              const std::array<std::int64_t, 4>& rows) {
  if (view.dtype != DType::kFloat32 || view.rank != 3 || view.shape[0] != rows[0] ||
      view.shape[1] != rows[1] || view.shape[2] != rows[2] ||
      (view.shape[2] > 1 && view.strides[2] != 1) ||
      (view.shape[1] > 1 && view.strides[1] != view.shape[2]) ||
      (view.shape[0] > 1 && view.strides[0] != view.shape[1] * view.shape[2])) {
    Fail(ErrorKind::kValue, name, ": got ", Name(view.dtype), " ", Shape(view),
         ", expected contiguous float32 (", rows[0], ", ", rows[1], ", ", rows[2],
         ") = (batch, query heads, Nq)");
  }
  CheckMemory(name, view);
}

void CheckThreads(int num_threads) {
  if (num_threads < 0) {
    Fail(ErrorKind::kValue, "num_threads: got ", num_threads,
         ", accepted are 1 and more, or 0 for the default");
  }
}

void CheckDropout(const Options& options) {
  if (!(options.dropout_p >= 0.0 && options.dropout_p <= 1.0)) {
    Fail(ErrorKind::kValue, "dropout_p: got ", Exact(options.dropout_p),
         ", expected a probability from 0 (keep every pair) to 1 (drop every pair)");
  }
}

/// Empty if nothing is padded.
ValidLists ListsOfMask(const std::optional<TensorView>& mask, std::int64_t batch,
                       std::int64_t length) {
  ValidLists valid;
  if (!mask) return valid;
  bool any_padded = false;
  valid.resize(static_cast<std::size_t>(batch));
  for (std::int64_t b = 0; b < batch; ++b) {
    auto& rows = valid[static_cast<std::size_t>(b)];
    const auto* flags = static_cast<const std::byte*>(mask->data);  // null where there are no rows
    for (std::int64_t i = 0; i < length; ++i) {
      const std::byte flag = flags[b * mask->strides[0] + i * mask->strides[1]];
      if (flag != std::byte{0}) rows.push_back(static_cast<std::int32_t>(i));
    }
    any_padded = any_padded || static_cast<std::int64_t>(rows.size()) != length;
  }
  if (!any_padded) valid.clear();
  return valid;
}

}  // namespace

const char* Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kBool:
      return "bool";
  }
  return "?";
}

std::string Exact(double number) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), number).ptr};
}

Problem CheckProblem(const Arguments& arguments, const Options& options, bool with_value) {
  const auto& [query, key, value, attn_mask, key_padding_mask, query_padding_mask] = arguments;
  CheckRows("query", query);
  CheckRows("key", key);
  if (with_value) {
    CheckRows("value", value);
    CheckSameDtype("value", value.dtype, key.dtype, "key");
  }

  const auto [batch, query_heads, queries, depth] = query.shape;
  const auto [key_batch, key_heads, keys, key_depth] = key.shape;
  CheckDepth("query", depth);
  CheckRowCount("key", batch, query_heads, keys);  // a plan may list every query head's keys
  if (key_batch != batch || key_depth != depth) {
    Fail(ErrorKind::kValue, "key: got shape ", Shape(key), ", expected (", batch, ", heads, Nk, ",
         depth, "): the batch and head dimension of query ", Shape(query));
  }
  if (with_value) {
    CheckDepth("value", value.shape[3]);
    if (value.shape[0] != batch || value.shape[1] != key_heads || value.shape[2] != keys) {
      Fail(ErrorKind::kValue, "value: got shape ", Shape(value), ", expected (", batch, ", ",
           key_heads, ", ", keys, ", Dv): the batch, heads and Nk of key ", Shape(key));
    }
  }
  if (query_heads != key_heads) {
    if (!options.enable_gqa) {
      Fail(ErrorKind::kValue, "key: got ", key_heads, " heads, expected ", query_heads,
           " like query; pass enable_gqa=True for grouped queries");
    }
    if (key_heads == 0 || query_heads % key_heads != 0) {
      Fail(ErrorKind::kValue, "query: got ", query_heads,
           " heads, expected a multiple of the key's ", key_heads);
    }
  }
  const double scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(depth)));
  // Kernels work in base 2: the scale times log2(e) must be a float32 number too.
  constexpr double kLargest = 2.3e38;
  constexpr double kSmallest = std::numeric_limits<float>::min();
  const double size = std::abs(scale);
  if (!(size <= kLargest) || (size > 0.0 && size < kSmallest)) {
    Fail(ErrorKind::kValue, "scale: got ", Exact(scale),
         ", expected a finite float32 number: 0 or of a size from ", kSmallest, " to ", kLargest);
  }
  CheckWindow(options.window);
  if (options.positions) {
    CheckPosition("first_query", options.positions->first_query, queries);
    CheckPosition("first_key", options.positions->first_key, keys);
  }
  CheckThreads(options.num_threads);
  CheckDropout(options);
  CheckPadding("key_padding_mask", "Nk", key_padding_mask, batch, keys);
  CheckPadding("query_padding_mask", "Nq", query_padding_mask, batch, queries);
  TensorView bias{};
  if (attn_mask) bias = Broadcast(*attn_mask, {batch, query_heads, queries, keys});

  return Problem{WithoutIdleStrides(query),
                 WithoutIdleStrides(key),
                 WithoutIdleStrides(value),
                 batch,
                 query_heads,
                 key_heads,
                 queries,
                 keys,
                 depth,
                 with_value ? value.shape[3] : 0,
                 scale,
                 Mask(queries, keys, options.is_causal, options.window, bias, options.positions),
                 ListsOfMask(query_padding_mask, batch, queries),
                 ListsOfMask(key_padding_mask, batch, keys),
                 {},
                 {},
                 Run(options.num_threads, options.thread_pool, options.workspace)};
}

void CheckOutputs(const Outputs& outputs, const Problem& problem) {
  const MutableTensorView& out = outputs.out;
  const std::array<std::int64_t, 4> expected{problem.batch, problem.query_heads, problem.queries,
                                             problem.value_depth};
  CheckRowsLike("out", out, problem, expected, "(batch, query heads, Nq, Dv)");
  CheckRowsApart("out", out);
  CheckApart("out", out, problem);
  if (outputs.lse) {
    const MutableTensorView& lse = *outputs.lse;
    CheckLse("lse", lse, expected);
    CheckApart("lse", lse, problem);
    CheckApart("lse", lse, "out", out);
  }
}

void CheckBackward(const TensorView& out, const TensorView& lse, const TensorView& grad_out,
                   const std::optional<TensorView>& grad_lse, const Gradients& gradients,
                   const Problem& problem) {
  const auto [batch, heads, queries, keys] =
      std::array{problem.batch, problem.query_heads, problem.queries, problem.keys};
  const std::array rows{batch, heads, queries, problem.value_depth};
  CheckSameDtype("key", problem.key.dtype, problem.query.dtype);
  CheckSameDtype("value", problem.value.dtype, problem.query.dtype);
  CheckRowsLike("out", out, problem, rows, "(batch, query heads, Nq, Dv)");
  CheckLse("lse", lse, rows);
  CheckRowsLike("grad_out", grad_out, problem, rows, "(batch, query heads, Nq, Dv)");
  if (grad_lse) CheckLse("grad_lse", *grad_lse, rows);
  CheckRowsLike("grad_query", gradients.query, problem, {batch, heads, queries, problem.depth},
                "(batch, query heads, Nq, D)");
  CheckRowsLike("grad_key", gradients.key, problem, {batch, problem.key_heads, keys, problem.depth},
                "(batch, key heads, Nk, D)");
  CheckRowsLike("grad_value", gradients.value, problem,
                {batch, problem.key_heads, keys, problem.value_depth},
                "(batch, key heads, Nk, Dv)");
  using Written = std::pair<const char*, const MutableTensorView*>;
  const std::array<Written, 3> written{Written{"grad_query", &gradients.query},
                                       {"grad_key", &gradients.key},
                                       {"grad_value", &gradients.value}};
  for (std::size_t i = 0; i < written.size(); ++i) {
    const auto& [name, view] = written[i];
    CheckRowsApart(name, *view);
    CheckApart(name, *view, problem);
    CheckApart(name, *view, "out", out);
    CheckApart(name, *view, "lse", lse);
    CheckApart(name, *view, "grad_out", grad_out);
    if (grad_lse) CheckApart(name, *view, "grad_lse", *grad_lse);
    for (std::size_t other = 0; other < i; ++other) {
      CheckApart(name, *view, written[other].first, *written[other].second);
    }
  }
}

void CheckMerge(const MutableTensorView& out, const MutableTensorView& lse,
                const TensorView& other_out, const TensorView& other_lse, int num_threads) {
  CheckThreads(num_threads);
  CheckRows("out", out);
  if (out.shape[3] != 0) CheckDepth("out", out.shape[3]);  // without columns lse still merges
  CheckRowsApart("out", out);
  CheckRows("other_out", other_out);
  if (other_out.dtype != out.dtype) {
    Fail(ErrorKind::kType, "other_out: got dtype ", Name(other_out.dtype), ", expected ",
         Name(out.dtype), " like out; convert one of them");
  }
  if (other_out.shape != out.shape) {
    Fail(ErrorKind::kValue, "other_out: got shape ", Shape(other_out), ", expected ", Shape(out),
         " like out: the same queries over other keys");
  }
  CheckLse("lse", lse, out.shape);
  CheckLse("other_lse", other_lse, out.shape);
  CheckApart("out", out, "other_out", other_out);
  CheckApart("out", out, "other_lse", other_lse);
  CheckApart("lse", lse, "out", out);
  CheckApart("lse", lse, "other_out", other_out);
  CheckApart("lse", lse, "other_lse", other_lse);
}

}  // namespace smyrf
