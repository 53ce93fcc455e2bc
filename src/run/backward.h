// The CPU executor of gradients: carries out a plan backwards and decides nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "base/workspace.h"
#include "run/forward.h"
#include "run/items.h"
#include "run/problem.h"
#include "smyrf/attention.h"

namespace smyrf {

/// What backward reads beside the problem, and where it writes.
struct BackwardCall {
  TensorView out, grad_out;
  const float* lse = nullptr;       ///< (B, Hq, Nq)
  const float* grad_lse = nullptr;  ///< the same; null: none
  Gradients gradients;
};

/// Gradients of the keys and values of one key head that one part of its queries adds to: rows of
/// kernels::PaddedDepth floats by position, zero at first.
struct KeyGradients {
  KeyGradients() = default;  ///< nothing yet
  explicit KeyGradients(const Problem& problem);
  bool empty() const { return key.get() == nullptr; }
  kernels::Floats key, value;
};

/// sums (count) += other.
void AddFloats(float* sums, const float* other, std::int64_t count);

/// sums += other.
void AddKeyGradients(const Problem& problem, const KeyGradients& other, const KeyGradients& sums);

/// Lets parts be added up in their order, each as soon as those before it are in: the sums are the
/// same for any number of threads, and on few threads few parts exist at once.
class InOrder {
 public:
  explicit InOrder(std::int64_t parts) : in_(static_cast<std::size_t>(parts)) {}

  /// Part i is in: `add`(j) for each part j whose turn it now is, one at a time. True once
  /// all are in.
  bool Done(std::int64_t i, const std::function<void(std::int64_t)>& add);

 private:
  std::mutex mutex_;
  std::vector<char> in_;
  std::size_t next_ = 0;
};

/// Parts that the queries of a key head are split into, each with KeyGradients of its own, which
/// are added in order: so that few heads make work for several run, and sums do not depend on
/// their number.
std::int64_t GradientParts(const Problem& problem);

/// Adds an item's part to the gradients of its key head; gives each query's to `store`.
void BackwardItem(const Problem& problem, const Item& item, const BackwardCall& call,
                  const KeyGradients& to,
                  const std::function<void(std::int64_t position, const float* row)>& store);

/// body(item) for the items that are part number `part` of `parts` of nearly equal cost.
void ForEachOfPart(const Problem& problem, const Items& items, std::int64_t part,
                   std::int64_t parts, const std::function<void(const Item&)>& body);

/// Writes the gradients of one (batch, key head); NaN at its valid rows where it met a head that is
/// not finite.
void StoreKeyGradients(const Problem& problem, std::int64_t key_head, const KeyGradients& sums,
                       bool non_finite, const Gradients& gradients, const Run& run);

/// Row of one (batch, head) of a gradient.
inline std::byte* GradientRow(const MutableTensorView& view, std::int64_t batch, std::int64_t head,
                              std::int64_t position) {
  return static_cast<std::byte*>(view.data) +
         SizeOf(view.dtype) *
             (batch * view.strides[0] + head * view.strides[1] + position * view.strides[2]);
}

/// Rows [begin, end) of grad_query of one (batch, query head): 0, and NaN in the valid ones where
/// it is not finite. Other rows are written by blocks.
void ClearQueryGradients(const Problem& problem, std::int64_t head, std::int64_t begin,
                         std::int64_t end, bool non_finite, const MutableTensorView& grad_query);

/// Gradients of all heads after `rounds` rounds. Extra memory: for as many key heads as are
/// computed at once, one set of KeyGradients and one a thread, GradientParts at most; for several
/// rounds, GradientParts of all key heads, and a float32 copy of grad_query if it is narrower.
void BackwardRounds(const Problem& problem, std::int64_t rounds, const PlanOfRounds& plan_of_rounds,
                    const BackwardCall& call);

/// The same for every allowed pair: dense attention.
void BackwardDense(const Problem& problem, const BackwardCall& call);

}  // namespace smyrf
