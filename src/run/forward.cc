#include "run/forward.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/parallel.h"
#include "run/items.h"
#include "run/output.h"
#include "run/partials.h"
#include "simd/kernels.h"

namespace smyrf {
namespace {

using kernels::kBlockRows;

/// Where one block of queries meets more keys than this, the keys are split and the parts merged,
/// so that one query over a long cache runs on all threads.
constexpr std::int64_t kChunkKeys = 2048;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class Forward {
 public:
  Forward(const Problem& problem, std::int64_t rounds, const Outputs& outputs)
      : problem_(problem), outputs_(outputs), merges_(rounds > 1) {
    if (merges_) {
      running_ = Partials(problem.batch * problem.query_heads * problem.queries,
                          problem.value_depth, outputs.out.dtype != DType::kFloat32, !outputs.lse);
    }
    if (outputs.statistics != nullptr) {
      nanoseconds_ = std::vector<std::atomic<std::int64_t>>(static_cast<std::size_t>(heads()));
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
    if (plan.rounds() > 1 && heads() >= std::int64_t{2} * problem_.run.threads) {
      ParallelFor(heads(), problem_.run, [&](std::int64_t head) {
        for (std::int64_t round = 0; round < plan.rounds(); ++round) {
          const Items items(problem_, plan, round, head, head + 1);
          for (std::int64_t i = 0; i < items.size(); ++i) {
            RunItem(items[i], 0, first_round + round);
          }
        }
      });
    } else {
      for (std::int64_t round = 0; round < plan.rounds(); ++round) {
        const Items items(problem_, plan, round, 0, heads());
        ParallelFor(items.size() * chunks_, problem_.run, [&](std::int64_t i) {
          RunItem(items[i / chunks_], i % chunks_, first_round + round);
        });
      }
    }
  }

  void Finish() {
    if (merges_) FinishRounds();
    for (std::size_t head = 0; head < nanoseconds_.size(); ++head) {
      outputs_.statistics->heads[head].seconds += 1e-9 * static_cast<double>(nanoseconds_[head]);
    }
  }

 private:
  std::int64_t heads() const { return problem_.batch * problem_.query_heads; }

  void SplitKeys() {
    if (plan_->method != Method::kDense || problem_.queries > kBlockRows) return;
    chunks_ = std::max<std::int64_t>(1, (problem_.keys + kChunkKeys - 1) / kChunkKeys);
    if (chunks_ == 1) return;
    parts_ = Partials(heads() * problem_.queries * chunks_, problem_.value_depth);
    chunks_in_ = std::vector<std::atomic<std::int64_t>>(static_cast<std::size_t>(heads()));
  }

  std::int64_t RowIndex(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return (b * problem_.query_heads + h) * problem_.queries + i;
  }
  /// What a query's rounds are merged in: the outputs' own memory, as far as that holds it.
  kernels::Partial Running(std::int64_t b, std::int64_t h, std::int64_t i) {
    const std::int64_t at = RowIndex(b, h, i);
    kernels::Partial row = running_.Row(at);
    if (row.out == nullptr) row.out = reinterpret_cast<float*>(HeadOutput{outputs_, b, h}.Row(i));
    if (row.max == nullptr && outputs_.lse) row.max = static_cast<float*>(outputs_.lse->data) + at;
    return row;
  }

  void FillUncoveredRows() {
    const auto head_plan = [&](std::int64_t b, std::int64_t h) {
      return plan_->method == Method::kLsh ? &plan_->head(0, b, h) : nullptr;
    };
    bool any = false;
    for (std::int64_t head = 0; head < heads() && !any; ++head) {
      any =
          AnyUncovered(*plan_, head_plan(head / problem_.query_heads, head % problem_.query_heads));
    }
    if (!any) return;
    ParallelRows(heads(), problem_.queries, problem_.run,
                 [&](std::int64_t head, std::int64_t begin, std::int64_t end) {
                   const std::int64_t b = head / problem_.query_heads;
                   const std::int64_t h = head % problem_.query_heads;
                   FillUncovered(*plan_, head_plan(b, h), b, begin, end, problem_.value_depth,
                                 [&](std::int64_t i, const float* row, float lse) {
                                   if (!merges_) {
                                     HeadOutput{outputs_, b, h}.Store(i, row, lse);
                                     return;
                                   }
                                   const kernels::Partial running = Running(b, h, i);
                                   std::copy_n(row, problem_.value_depth, running.out);
                                   *running.max = lse;
                                   *running.sum = lse == -kInfinity ? 0.0F : lse;  // else NaN
                                 });
                 });
  }

  void RunItem(const Item& item, std::int64_t chunk, std::int64_t round) {
    if (outputs_.statistics == nullptr) return Attend(item, chunk, round);
    const auto start = std::chrono::steady_clock::now();
    Attend(item, chunk, round);
    const auto taken = std::chrono::steady_clock::now() - start;
    nanoseconds_[static_cast<std::size_t>(item.batch * problem_.query_heads + item.head)] +=
        std::chrono::duration_cast<std::chrono::nanoseconds>(taken).count();
  }

  /// `chunk` of the keys: `dense` only.
  void Attend(const Item& item, std::int64_t chunk, std::int64_t round) {
    const std::int64_t keys = ValidCount(plan_->valid_keys, item.batch, problem_.keys);
    const std::int64_t first = chunks_ > 1 ? std::min(keys, chunk * kChunkKeys) : 0;
    const std::int64_t last = chunks_ > 1 ? std::min(keys, first + kChunkKeys) : keys;
    DenseRanges implicit;
    const kernels::BlockTask task = TaskOf(problem_, *plan_, item, first, last, implicit);
    const kernels::Partial partial = kernels::AttendBlock(task);
    const HeadOutput output{outputs_, item.batch, item.head};
    for (std::int64_t i = item.begin; i < item.end; ++i) {
      const kernels::Partial row = partial.Row(i - item.begin);
      const std::int64_t position = task.query.Position(i);
      if (chunks_ > 1) {
        const std::int64_t at = RowIndex(item.batch, item.head, position) * chunks_ + chunk;
        kernels::CopyPartial(parts_.Row(at), row);
      } else if (!merges_) {
        output.Finish(position, row);
      } else if (round == 0) {
        kernels::CopyPartial(Running(item.batch, item.head, position), row);
      } else {
        kernels::MergePartial(Running(item.batch, item.head, position), row);
      }
    }
    if (chunks_ > 1 && IsLastChunk(item)) {
      for (std::int64_t i = item.begin; i < item.end; ++i) {
        MergeChunks(output, task.query.Position(i));
      }
    }
  }

  /// Where keys are split, a head has one item. Whoever brings the last of its chunks merges all,
  /// in their order: the same bits for any number of threads.
  bool IsLastChunk(const Item& item) {
    const auto head = static_cast<std::size_t>(item.batch * problem_.query_heads + item.head);
    return chunks_in_[head].fetch_add(1) + 1 == chunks_;
  }

  void MergeChunks(const HeadOutput& output, std::int64_t i) {
    const std::int64_t first = RowIndex(output.batch, output.head, i) * chunks_;
    const kernels::Partial row = parts_.Row(first);
    for (std::int64_t c = 1; c < chunks_; ++c) kernels::MergePartial(row, parts_.Row(first + c));
    output.Finish(i, row);
  }

  void FinishRounds() {
    ParallelRows(heads(), problem_.queries, problem_.run,
                 [&](std::int64_t head, std::int64_t begin, std::int64_t end) {
                   const std::int64_t b = head / problem_.query_heads;
                   const std::int64_t h = head % problem_.query_heads;
                   for (std::int64_t i = begin; i < end; ++i) {
                     HeadOutput{outputs_, b, h}.Finish(i, Running(b, h, i));
                   }
                 });
  }

  const Problem& problem_;
  const Outputs& outputs_;
  const bool merges_;           ///< several rounds
  const Plan* plan_ = nullptr;  ///< of the rounds that run
  std::int64_t chunks_ = 1;
  Partials running_;                                    ///< of all rows, over the rounds so far
  Partials parts_;                                      ///< of all rows, a chunk after the other
  std::vector<std::atomic<std::int64_t>> chunks_in_;    ///< of each head
  std::vector<std::atomic<std::int64_t>> nanoseconds_;  ///< of each head, for statistics
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
