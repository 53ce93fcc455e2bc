// Turns a call's arguments into a Problem, or throws the Error that says what is wrong.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/run.h"
#include "simd/dropout.h"
#include "simd/mask.h"
#include "smyrf/attention.h"

namespace smyrf {

/// Queries or keys of a call.
inline constexpr std::int64_t kMaxRows = std::numeric_limits<std::int32_t>::max();

/// Queries or keys of all heads and batch entries: more than any memory holds, and few enough that
/// no count or offset overflows.
inline constexpr double kMaxAllRows = 0x1p40;

/// A call that was found to be sound. Planners and executors take it and check nothing.
struct Problem {
  TensorView query, key, value;
  std::int64_t batch = 0, query_heads = 0, key_heads = 0;
  std::int64_t queries = 0, keys = 0;       ///< Nq, Nk
  std::int64_t depth = 0, value_depth = 0;  ///< D, Dv; Dv is 0 where only a plan is made
  double scale = 1.0;
  Mask mask;
  Dropout dropout;  ///< none until the plan is known, whose seed may count
  Run run;

  std::int64_t KeyHead(std::int64_t query_head) const {
    return query_head / (query_heads / key_heads);
  }
};

/// Checks everything but options' method and dials; dropout stays off. `value` is looked at where
/// `with_value`.
Problem CheckProblem(const Arguments& arguments, const Options& options, bool with_value);

/// Throws unless all three have the dtype of query, as gradients and Python's calls need.
void CheckOneDtype(const TensorView& query, const TensorView& key, const TensorView& value);

/// Its range, whether it is used or not.
void CheckTolerance(const Options& options);

/// Throws where `tree` would have to drop pairs.
void CheckNoDropout(const Options& options);

/// An empty plan with its method, reason, dials and padding filled in.
Plan CheckMethod(const Arguments& arguments, const Options& options, const Problem& problem);

/// Throws unless the plan keeps what smyrf/plan.h says of it. Cost: one look at each of its
/// numbers.
void CheckStructure(const Plan& plan);

/// Throws unless the plan was made for such a problem and the call asks for nothing else.
void CheckPlan(const Plan& plan, const Arguments& arguments, const Options& options,
               const Problem& problem);

/// Original indices of the valid rows of each batch entry; empty if nothing is padded.
std::vector<std::vector<std::int32_t>> ValidRows(const std::optional<TensorView>& mask,
                                                 std::int64_t batch, std::int64_t length);

void CheckOutputs(const Outputs& outputs, const Problem& problem);

/// The arguments of `attention_backward` that `attention` does not have.
void CheckBackward(const TensorView& out, const TensorView& lse, const TensorView& grad_out,
                   const std::optional<TensorView>& grad_lse, const Gradients& gradients,
                   const Problem& problem);

/// The arguments of `merge`.
void CheckMerge(const MutableTensorView& out, const MutableTensorView& lse,
                const TensorView& other_out, const TensorView& other_lse, int num_threads);

const char* Name(DType dtype);
const char* Name(Method method);

}  // namespace smyrf
