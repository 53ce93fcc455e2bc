#include "execute/forward.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "execute/items.h"
#include "execute/output.h"
#include "kernels/kernels.h"
#include "kernels/parallel.h"

namespace smyrf {
namespace {

using kernels::kBlockRows;

/// Where one block of queries meets more keys than this, the keys are split and the parts merged,
/// so that one query over a long cache runs on all threads.
constexpr std::int64_t kChunkKeys = 2048;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// One call of the kernel.
struct ForwardItem : Item {
  std::int64_t chunk = 0;  ///< of the keys, dense only
  double seconds = 0.0;    ///< filled where statistics are asked for
};

class Forward {
 public:
  Forward(const Problem& problem, std::int64_t rounds, const Outputs& outputs)
      : problem_(problem), outputs_(outputs), merges_(rounds > 1) {
    const auto lse_size =
        static_cast<std::size_t>(problem.batch * problem.query_heads * problem.queries);
    const std::size_t out_size = lse_size * static_cast<std::size_t>(problem.value_depth);
    if (merges_) {
      if (outputs.out.dtype != DType::kFloat32) running_out_.resize(out_size);
      if (!outputs.lse) running_lse_.resize(lse_size);
    }
  }

  /// The plan's rounds, of which `first_round` were run before.
  void Run(const Plan& plan, std::int64_t first_round) {
    plan_ = &plan;
    if (first_round == 0) {
      SplitKeys();
      FillUncoveredRows();
    }
    // A query's rounds are merged in order, so they may not overlap: either whole heads run side by
    // side, each through all its rounds, or the blocks of one round at a time. Same bits either
    // way.
    const std::int64_t heads = problem_.batch * problem_.query_heads;
    const int threads = ThreadsFor(problem_.num_threads);
    if (plan.rounds() > 1 && heads >= std::int64_t{2} * threads) {
      ParallelFor(heads, threads, [&](std::int64_t head) {
        for (std::int64_t round = 0; round < plan.rounds(); ++round) {
          std::vector<ForwardItem> items;
          AddForwardItems(round, head, items);
          for (ForwardItem& item : items) RunItem(item, first_round + round);
          CountSeconds(items);
        }
      });
    } else {
      for (std::int64_t round = 0; round < plan.rounds(); ++round) {
        std::vector<ForwardItem> items;
        for (std::int64_t head = 0; head < heads; ++head) AddForwardItems(round, head, items);
        ParallelFor(static_cast<std::int64_t>(items.size()), threads, [&](std::int64_t i) {
          RunItem(items[static_cast<std::size_t>(i)], first_round + round);
        });
        CountSeconds(items);
      }
    }
  }

  void Finish() {
    if (chunks_ > 1) MergeChunks();
    if (!running_out_.empty()) StoreRunning();
  }

 private:
  void SplitKeys() {
    if (plan_->method != Method::kDense || problem_.queries > kBlockRows) return;
    chunks_ = std::max<std::int64_t>(1, (problem_.keys + kChunkKeys - 1) / kChunkKeys);
    if (chunks_ == 1) return;
    const std::int64_t parts = problem_.batch * problem_.query_heads * problem_.queries * chunks_;
    part_out_.resize(static_cast<std::size_t>(parts * problem_.value_depth));
    part_max_.resize(static_cast<std::size_t>(parts));
    part_sum_.resize(static_cast<std::size_t>(parts));
  }

  std::int64_t RowIndex(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return (b * problem_.query_heads + h) * problem_.queries + i;
  }
  std::byte* OutRow(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return HeadOutput{outputs_, b, h}.Row(i);
  }
  /// The float32 row that rounds are merged in, and its lse.
  float* RunningRow(std::int64_t b, std::int64_t h, std::int64_t i) {
    if (running_out_.empty()) return reinterpret_cast<float*>(OutRow(b, h, i));
    return running_out_.data() + RowIndex(b, h, i) * problem_.value_depth;
  }
  float* Lse(std::int64_t b, std::int64_t h, std::int64_t i) {
    float* lse = outputs_.lse ? static_cast<float*>(outputs_.lse->data) : running_lse_.data();
    return lse + RowIndex(b, h, i);
  }
  void Store(std::int64_t b, std::int64_t h, std::int64_t i, const float* row, float lse) const {
    HeadOutput{outputs_, b, h}.Store(i, row, lse);
  }

  void FillUncoveredRows() {
    for (std::int64_t b = 0; b < problem_.batch; ++b) {
      for (std::int64_t h = 0; h < problem_.query_heads; ++h) {
        const HeadPlan* head = plan_->method == Method::kLsh ? &plan_->head(0, b, h) : nullptr;
        FillUncovered(*plan_, head, b, problem_.value_depth,
                      [&](std::int64_t i, const float* row, float lse) {
                        Store(b, h, i, row, lse);
                        if (merges_) {
                          std::copy_n(row, problem_.value_depth, RunningRow(b, h, i));
                        }
                      });
      }
    }
  }

  /// The kernel calls of one round of one head, for each chunk of the keys.
  void AddForwardItems(std::int64_t round, std::int64_t head,
                       std::vector<ForwardItem>& items) const {
    std::vector<Item> blocks;
    AddItems(problem_, *plan_, round, head / problem_.query_heads, head % problem_.query_heads,
             blocks);
    for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) {
      for (const Item& block : blocks) items.push_back({block, chunk});
    }
  }

  void CountSeconds(const std::vector<ForwardItem>& items) const {
    if (outputs_.statistics == nullptr) return;
    for (const ForwardItem& item : items) {
      const std::int64_t head = item.batch * problem_.query_heads + item.head;
      outputs_.statistics->heads[static_cast<std::size_t>(head)].seconds += item.seconds;
    }
  }

  void RunItem(ForwardItem& item, std::int64_t round) {
    if (outputs_.statistics == nullptr) return Attend(item, round);
    const auto start = std::chrono::steady_clock::now();
    Attend(item, round);
    const auto end = std::chrono::steady_clock::now();
    item.seconds = std::chrono::duration<double>(end - start).count();
  }

  void Attend(const ForwardItem& item, std::int64_t round) {
    const std::int64_t keys = ValidCount(plan_->valid_keys, item.batch, problem_.keys);
    const std::int64_t first = chunks_ > 1 ? std::min(keys, item.chunk * kChunkKeys) : 0;
    const std::int64_t last = chunks_ > 1 ? std::min(keys, first + kChunkKeys) : keys;
    DenseRanges implicit;
    const kernels::BlockTask task = TaskOf(problem_, *plan_, item, first, last, implicit);
    const kernels::BlockResult result = kernels::AttendBlock(task);
    for (std::int64_t i = item.begin; i < item.end; ++i) {
      const float* row = result.out + (i - item.begin) * problem_.value_depth;
      const float lse = result.lse[i - item.begin];
      const std::int64_t position = task.query.Position(i);
      if (chunks_ > 1) {
        const std::int64_t at = RowIndex(item.batch, item.head, position) * chunks_ + item.chunk;
        std::copy_n(row, problem_.value_depth, part_out_.data() + at * problem_.value_depth);
        part_max_[static_cast<std::size_t>(at)] = result.max[i - item.begin];
        part_sum_[static_cast<std::size_t>(at)] = result.sum[i - item.begin];
      } else if (!merges_) {
        Store(item.batch, item.head, position, row, lse);
      } else {
        float* running = RunningRow(item.batch, item.head, position);
        float* running_lse = Lse(item.batch, item.head, position);
        if (round == 0) {
          std::copy_n(row, problem_.value_depth, running);
          *running_lse = lse;
        } else {
          kernels::MergeRow(running, running_lse, row, lse, problem_.value_depth);
        }
      }
    }
  }

  void ForEachValidRow(const std::function<void(std::int64_t, std::int64_t, std::int64_t)>& body) {
    for (std::int64_t b = 0; b < problem_.batch; ++b) {
      const std::span<const std::int32_t> valid = ValidOf(plan_->valid_queries, b);
      const std::int64_t count = ValidCount(plan_->valid_queries, b, problem_.queries);
      for (std::int64_t h = 0; h < problem_.query_heads; ++h) {
        for (std::int64_t i = 0; i < count; ++i) {
          body(b, h, valid.empty() ? i : valid[static_cast<std::size_t>(i)]);
        }
      }
    }
  }

  void MergeChunks() {
    ForEachValidRow([&](std::int64_t b, std::int64_t h, std::int64_t i) {
      const std::int64_t first = RowIndex(b, h, i) * chunks_;
      float* row = part_out_.data() + first * problem_.value_depth;
      float* max = part_max_.data() + first;
      float* sum = part_sum_.data() + first;
      for (std::int64_t c = 1; c < chunks_; ++c) {
        kernels::MergePart(row, max, sum, row + c * problem_.value_depth, max[c], sum[c],
                           problem_.value_depth);
      }
      Store(b, h, i, row, *max == -kInfinity ? -kInfinity : kernels::NaturalLse(*max, *sum));
    });
  }

  void StoreRunning() {
    ForEachValidRow([&](std::int64_t b, std::int64_t h, std::int64_t i) {
      kernels::StoreRow(RunningRow(b, h, i), problem_.value_depth, outputs_.out.dtype,
                        OutRow(b, h, i));
    });
  }

  const Problem& problem_;
  const Outputs& outputs_;
  const bool merges_;           ///< several rounds
  const Plan* plan_ = nullptr;  ///< of the rounds that run
  std::int64_t chunks_ = 1;
  std::vector<float> running_out_, running_lse_;
  std::vector<float> part_out_, part_max_, part_sum_;
};

}  // namespace

void ExecuteForward(const Problem& problem, std::int64_t rounds, const PlanOfRounds& plan_of_rounds,
                    const Outputs& outputs) {
  Forward forward(problem, rounds, outputs);
  for (std::int64_t round = 0; round < rounds;) {
    const Plan& plan = plan_of_rounds(round);
    forward.Run(plan, round);
    round += plan.rounds();
  }
  forward.Finish();
}

}  // namespace smyrf
