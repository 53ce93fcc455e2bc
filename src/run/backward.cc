#include "run/backward.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "simd/backward.h"
#include "simd/kernels.h"

namespace smyrf {
namespace {

using kernels::kBlockRows;
using kernels::PaddedDepth;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class Backward {
 public:
  Backward(const Problem& problem, std::int64_t rounds, const BackwardCall& call)
      : problem_(problem), call_(call), parts_(GradientParts(problem)), rounds_(rounds) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(problem.batch * problem.key_heads); ++i) {
      heads_.push_back(std::make_unique<KeyHead>(parts_));
    }
    if (rounds > 1 && problem.query.dtype != DType::kFloat32) {
      running_.resize(static_cast<std::size_t>(problem.batch * problem.query_heads *
                                               problem.queries * problem.depth));
    }
  }

  /// The plan's rounds, of which `first_round` were run before; null: every allowed pair, as the
  /// only round.
  void AddRounds(const PlanView* plan, std::int64_t first_round) {
    plan_ = plan;
    const std::int64_t rounds = plan != nullptr ? plan->info().rounds() : 1;
    first_round_ = first_round;
    if (first_round == 0) ClearQueries();
    // A query's rounds are added in order, so they may not overlap: either whole key heads run side
    // by side, each through all its rounds, or the parts of one round at a time. Same bits either
    // way.
    const auto heads = std::ssize(heads_);
    if (heads >= std::int64_t{2} * problem_.run.threads) {
      ParallelFor(heads, problem_.run, [&](std::int64_t head) {
        for (std::int64_t round = 0; round < rounds; ++round) {
          for (std::int64_t part = 0; part < parts_; ++part) RunPart(round, head, part);
        }
      });
    } else {
      for (std::int64_t round = 0; round < rounds; ++round) {
        ParallelFor(heads * parts_, problem_.run,
                    [&](std::int64_t i) { RunPart(round, i / parts_, i % parts_); });
      }
    }
  }

 private:
  struct KeyHead {
    explicit KeyHead(std::int64_t count) : parts(static_cast<std::size_t>(count)), order(count) {}
    std::vector<KeyGradients> parts;
    InOrder order;  ///< of parts, in the last round
  };

  std::int64_t group() const { return problem_.query_heads / problem_.key_heads; }

  bool NonFinite(std::int64_t b, std::int64_t h) const {
    return plan_ != nullptr && plan_->head(0, b, h).non_finite;
  }

  void ClearQueries() {
    ParallelRows(problem_.batch * problem_.query_heads, problem_.queries, problem_.run,
                 [&](std::int64_t head, std::int64_t begin, std::int64_t end) {
                   ClearQueryGradients(
                       problem_, head, begin, end,
                       NonFinite(head / problem_.query_heads, head % problem_.query_heads),
                       call_.gradients.query);
                 });
  }

  /// The float32 row that a query's rounds are added in.
  float* RunningRow(std::int64_t b, std::int64_t h, std::int64_t i) {
    if (running_.empty()) {
      return reinterpret_cast<float*>(GradientRow(call_.gradients.query, b, h, i));
    }
    return running_.data() +
           ((b * problem_.query_heads + h) * problem_.queries + i) * problem_.depth;
  }

  void RunPart(std::int64_t round, std::int64_t key_head, std::int64_t part) {
    KeyHead& head = *heads_[static_cast<std::size_t>(key_head)];
    KeyGradients& to = head.parts[static_cast<std::size_t>(part)];
    if (to.empty()) to = KeyGradients(problem_);
    const std::int64_t b = key_head / problem_.key_heads;
    const Items items(problem_, plan_, round, key_head * group(), (key_head + 1) * group());
    ForEachOfPart(problem_, items, part, parts_, [&](const Item& item) {
      BackwardItem(problem_, item, call_, to, [&](std::int64_t i, const float* row) {
        if (rounds_ == 1) {
          kernels::StoreRow(row, problem_.depth, problem_.query.dtype,
                            GradientRow(call_.gradients.query, b, item.head, i));
          return;
        }
        AddFloats(RunningRow(b, item.head, i), row, problem_.depth);
      });
    });
    if (first_round_ + round + 1 < rounds_) return;
    const bool all = head.order.Done(part, [&](std::int64_t i) {
      if (i == 0) return;
      KeyGradients& other = head.parts[static_cast<std::size_t>(i)];
      AddKeyGradients(problem_, other, head.parts[0]);
      other = {};
    });
    if (all) Finish(b, key_head % problem_.key_heads, head);
  }

  void Finish(std::int64_t b, std::int64_t g, KeyHead& head) {
    bool non_finite = false;
    for (std::int64_t h = g * group(); h < (g + 1) * group(); ++h) {
      non_finite = non_finite || NonFinite(b, h);
      if (!running_.empty() && !NonFinite(b, h)) StoreRunning(b, h);
    }
    StoreKeyGradients(problem_, b * problem_.key_heads + g, head.parts[0], non_finite,
                      call_.gradients, problem_.run.Alone());
    head.parts.clear();
  }

  void StoreRunning(std::int64_t b, std::int64_t h) {
    for (std::int64_t i = 0; i < problem_.queries; ++i) {
      kernels::StoreRow(RunningRow(b, h, i), problem_.depth, problem_.query.dtype,
                        GradientRow(call_.gradients.query, b, h, i));
    }
  }

  const Problem& problem_;
  const BackwardCall& call_;
  const std::int64_t parts_;
  const std::int64_t rounds_;
  const PlanView* plan_ = nullptr;               ///< of the rounds that run
  std::int64_t first_round_ = 0;                 ///< of them
  std::vector<std::unique_ptr<KeyHead>> heads_;  ///< (batch, key head)
  std::vector<float> running_;
};

}  // namespace

KeyGradients::KeyGradients(const Problem& problem)
    : key(kernels::Zeros(problem.keys * PaddedDepth(problem.depth))),
      value(kernels::Zeros(problem.keys * PaddedDepth(problem.value_depth))) {}

void AddFloats(float* sums, const float* other, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) sums[i] += other[i];
}

void AddKeyGradients(const Problem& problem, const KeyGradients& other, const KeyGradients& sums) {
  AddFloats(sums.key.get(), other.key.get(), problem.keys * PaddedDepth(problem.depth));
  AddFloats(sums.value.get(), other.value.get(), problem.keys * PaddedDepth(problem.value_depth));
}

bool InOrder::Done(std::int64_t i, const std::function<void(std::int64_t)>& add) {
  const std::scoped_lock lock(mutex_);
  in_[static_cast<std::size_t>(i)] = 1;
  for (; next_ < in_.size() && in_[next_] != 0; ++next_) add(static_cast<std::int64_t>(next_));
  return next_ == in_.size();
}

std::int64_t GradientParts(const Problem& problem) {
  constexpr std::int64_t kTasks = 16;  // key heads times parts to reach
  constexpr std::int64_t kMostParts = 8;
  constexpr std::int64_t kFewestBlocks = 4;  // that make up for a part's own sums
  const std::int64_t heads = problem.batch * problem.key_heads;
  if (heads == 0) return 1;
  const std::int64_t blocks =
      problem.query_heads / problem.key_heads * ((problem.queries + kBlockRows - 1) / kBlockRows);
  return std::clamp<std::int64_t>(std::min((kTasks + heads - 1) / heads, blocks / kFewestBlocks), 1,
                                  kMostParts);
}

void ForEachOfPart(const Problem& problem, const Items& items, std::int64_t part,
                   std::int64_t parts, const std::function<void(const Item&)>& body) {
  const auto cost_of = [&](const Item& item) {
    std::int64_t cost = 1;
    const std::int64_t keys = ValidCount(problem.valid_keys, item.batch, problem.keys);
    DenseRanges implicit;
    for (const KeyRange& range : TaskOf(problem, item, 0, keys, implicit).ranges) {
      cost += (range.end - range.begin) * (item.end - item.begin);
    }
    return cost;
  };
  std::int64_t all = 0;
  for (std::int64_t i = 0; i < items.size() && parts > 1; ++i) all += cost_of(items[i]);
  std::int64_t before = 0;
  std::int64_t at = 0;  // the part that holds the middle of the item
  for (std::int64_t i = 0; i < items.size(); ++i) {
    const Item item = items[i];
    const std::int64_t cost = parts > 1 ? cost_of(item) : 0;
    while (at + 1 < parts && (2 * before + cost) * parts >= 2 * all * (at + 1)) ++at;
    if (at > part) return;
    if (at == part) body(item);
    before += cost;
  }
}

void BackwardItem(const Problem& problem, const Item& item, const BackwardCall& call,
                  const KeyGradients& to,
                  const std::function<void(std::int64_t position, const float* row)>& store) {
  const std::int64_t keys = ValidCount(problem.valid_keys, item.batch, problem.keys);
  DenseRanges implicit;
  kernels::BackwardTask task;
  task.block = TaskOf(problem, item, 0, keys, implicit);
  const std::span<const std::int32_t> order =
      item.block != nullptr ? item.plan.query_order : ValidOf(problem.valid_queries, item.batch);
  task.out = kernels::RowsOf(call.out, item.batch, item.head, order);
  task.grad_out = kernels::RowsOf(call.grad_out, item.batch, item.head, order);
  const std::int64_t head = (item.batch * problem.query_heads + item.head) * problem.queries;
  task.lse = call.lse + head;
  if (call.grad_lse != nullptr) task.grad_lse = call.grad_lse + head;
  task.grad_key = to.key.get();
  task.grad_value = to.value.get();
  const float* rows = kernels::BackwardBlock(task);
  for (std::int64_t i = item.begin; i < item.end; ++i) {
    store(task.block.query.Position(i), rows + (i - item.begin) * problem.depth);
  }
}

void StoreKeyGradients(const Problem& problem, std::int64_t key_head, const KeyGradients& sums,
                       bool non_finite, const Gradients& gradients, const Run& run) {
  const std::int64_t b = key_head / problem.key_heads;
  const std::int64_t g = key_head % problem.key_heads;
  const auto store = [&](const MutableTensorView& view, const float* rows, std::int64_t depth,
                         std::int64_t begin, std::int64_t end) {
    const auto store_row = [&](std::int64_t j, const float* row) {
      kernels::StoreRow(row, depth, view.dtype, GradientRow(view, b, g, j));
    };
    for (std::int64_t j = begin; j < end; ++j) store_row(j, rows + j * PaddedDepth(depth));
    if (!non_finite) return;
    const std::vector<float> nans(static_cast<std::size_t>(depth), kNaN);
    ForEachValid(problem.valid_keys, b, begin, end,
                 [&](std::int64_t j) { store_row(j, nans.data()); });
  };
  ParallelRows(1, problem.keys, run, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    store(gradients.key, sums.key.get(), problem.depth, begin, end);
    store(gradients.value, sums.value.get(), problem.value_depth, begin, end);
  });
}

void ClearQueryGradients(const Problem& problem, std::int64_t head, std::int64_t begin,
                         std::int64_t end, bool non_finite, const MutableTensorView& grad_query) {
  const std::int64_t b = head / problem.query_heads;
  std::vector<float> row(static_cast<std::size_t>(problem.depth), 0.0F);
  const auto store = [&](std::int64_t position) {
    kernels::StoreRow(row.data(), problem.depth, grad_query.dtype,
                      GradientRow(grad_query, b, head % problem.query_heads, position));
  };
  for (std::int64_t i = begin; i < end; ++i) store(i);
  if (!non_finite) return;
  std::fill(row.begin(), row.end(), kNaN);
  ForEachValid(problem.valid_queries, b, begin, end, store);
}

void BackwardRounds(const Problem& problem, std::int64_t rounds, const PlanOfRounds& plan_of_rounds,
                    const BackwardCall& call) {
  Backward backward(problem, rounds, call);
  for (std::int64_t round = 0; round < rounds;) {
    const PlanView& plan = plan_of_rounds(round);
    backward.AddRounds(&plan, round);
    round += plan.info().rounds();
  }
}

void BackwardDense(const Problem& problem, const BackwardCall& call) {
  Backward(problem, 1, call).AddRounds(nullptr, 0);
}

}  // namespace smyrf
