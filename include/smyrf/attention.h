// The calls. Every one validates its arguments and throws smyrf::Error before it writes anything.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "smyrf/error.h"
#include "smyrf/export.h"
#include "smyrf/options.h"
#include "smyrf/plan.h"
#include "smyrf/statistics.h"
#include "smyrf/tensor.h"

namespace smyrf {

/// query (B, Hq, Nq, D), key (B, Hkv, Nk, D), value (B, Hkv, Nk, Dv): float32, float16 or bfloat16,
/// on the CPU. key and value have one dtype, query may have another (float32 over a float16 cache);
/// gradients need one for all three. D and Dv from 1 to 2048. All masks combine by AND.
struct Arguments {
  TensorView query;
  TensorView key;
  TensorView value;
  /// bool (True takes part) or additive float, broadcastable to (B, Hq, Nq, Nk). `dense` only.
  std::optional<TensorView> attn_mask{};
  std::optional<TensorView> key_padding_mask{};    ///< bool (B, Nk), True is valid
  std::optional<TensorView> query_padding_mask{};  ///< bool (B, Nq), True is valid
};

struct Outputs {
  MutableTensorView out;                   ///< (B, Hq, Nq, Dv), dtype of the query
  std::optional<MutableTensorView> lse{};  ///< float32 (B, Hq, Nq), natural log, contiguous
  Statistics* statistics = nullptr;        ///< filled when given
  /// Becomes the plan that was carried out, where none is passed in: attention_backward takes it
  /// and need not plan again, which costs `tree` a sixth to two thirds of forward's time. `lsh`
  /// then plans all rounds at once.
  Plan* plan = nullptr;
};

/// softmax(scale q k^T + masks) v, by the method asked for. A query that may see no key gives 0 and
/// lse -inf. With `plan`, the plan's method, dials, padding, causality, window and positions apply:
/// options and masks must be left at their defaults or agree with it.
SMYRF_API void attention(const Arguments& arguments, const Options& options, const Outputs& outputs,
                         const Plan* plan = nullptr);

/// (B, H, N, D) views of the shapes of query, key and value, in their dtype.
struct Gradients {
  MutableTensorView query, key, value;
};

/// Gradients of a loss by query, key and value, from those by out and lse.
///
/// out, lse: what `attention` gave for the same arguments, options and plan; grad_out like out;
/// grad_lse like lse, contiguous float32 (B, Hq, Nq), none where lse was not used. They are
/// computed in float32 and rounded once. Masks have no gradient. Without a plan (Outputs::plan
/// gives it) it is made again, as `attention` made it: on the same instruction set with the same
/// options for any number of threads.
///
/// The structure is held constant: for `lsh` which pairs are evaluated; for `tree` that and the
/// bases and directions, while the summaries depend on every key and value that they stand for.
/// Queries that are padded or see no key, and padded keys, have gradients of 0. A head of `lsh` or
/// `tree` that is not finite gives NaN at its valid queries, and its key head at its valid keys; in
/// `dense` NaN passes on as in its arithmetic.
///
/// Same bits for any number of threads. Memory: float32 gradients of a key head's keys and values,
/// 4 Nk (D + Dv) bytes, up to 8 times where there are less than 16 key heads, for as many key heads
/// as are computed at once; for `lsh` of all key heads, and of all queries where grad_query is
/// narrower than float32.
SMYRF_API void attention_backward(const Arguments& arguments, const Options& options,
                                  const TensorView& out, const TensorView& lse,
                                  const TensorView& grad_out,
                                  const std::optional<TensorView>& grad_lse,
                                  const Gradients& gradients, const Plan* plan = nullptr);

/// The structure that `attention` would carry out for these arguments. `arguments.value` may be
/// left out for `dense` and `lsh`. With kAuto pass it: without value the plan is dense, also where
/// `attention` would take `tree`.
SMYRF_API Plan plan(const Arguments& arguments, const Options& options);

/// What `tree` would do for these arguments, without doing it: of every head the density, the
/// errors and the work to expect, and whether it goes dense. Costs the planning: basis, trees,
/// summaries, calibration. `execution_seconds` is 0. With kAuto, the method that it would take;
/// Error for `lsh`, which has no estimate.
SMYRF_API Statistics estimate(const Arguments& arguments, const Options& options);

/// Merges the attention of the same queries over two disjoint sets of keys: (out, lse) becomes that
/// over both, rows weighted by e^lse. out and other_out: (B, Hq, Nq, Dv) of one dtype; lse and
/// other_lse: contiguous float32 (B, Hq, Nq). Dv from 0 to 2048. Not for `lsh`, whose lse is a
/// weight of its own. A row whose lse is -inf adds nothing; where both are, out must hold 0 as
/// attention leaves it.
SMYRF_API void merge(const MutableTensorView& out, const MutableTensorView& lse,
                     const TensorView& other_out, const TensorView& other_lse, int num_threads = 0,
                     ThreadPool* thread_pool = nullptr);

/// The same result in float64 by plain loops: what every executor is compared with.
/// out: (B, Hq, Nq, Dv) and lse: (B, Hq, Nq), both contiguous; lse may be null.
SMYRF_API void reference(const Arguments& arguments, const Options& options, double* out,
                         double* lse, const Plan* plan = nullptr);

/// The gradients of `reference` in float64 by plain loops, contiguous: grad_query (B, Hq, Nq, D),
/// grad_key (B, Hkv, Nk, D), grad_value (B, Hkv, Nk, Dv). It computes out and lse itself.
SMYRF_API void reference_backward(const Arguments& arguments, const Options& options,
                                  const TensorView& grad_out,
                                  const std::optional<TensorView>& grad_lse, double* grad_query,
                                  double* grad_key, double* grad_value, const Plan* plan = nullptr);

/// The instruction sets that this machine and build can run, best first.
SMYRF_API std::vector<std::string> instruction_sets();
/// Restricts dispatch to one of them, or to the best when empty. For tests and benchmarks: not to
/// be called while another thread computes. Throws Error on an unknown name.
SMYRF_API void force_instruction_set(const std::string& name);

}  // namespace smyrf
