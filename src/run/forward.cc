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
#include "run/narrow.h"
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
  Forward(const Problem& problem, const HeadRange& range, std::int64_t rounds, const Run& run,
          const Outputs& outputs)
      : problem_(problem), range_(range), run_(run), outputs_(outputs), merges_(rounds > 1) {
    if (merges_) {
      running_ = Partials(heads() * problem.queries, problem.value_depth,
                          outputs.out.dtype != DType::kFloat32, !outputs.lse);
    }
    if (outputs.statistics != nullptr) {
      nanoseconds_ = std::vector<std::atomic<std::int64_t>>(static_cast<std::size_t>(heads()));
    }
  }

  /// The plan's rounds, of which `first_round` were run before; null: every allowed pair, as the
  /// only round.
  void AddRounds(const PlanView* plan, std::int64_t first_round) {
    plan_ = plan;
    const std::int64_t rounds = plan != nullptr ? plan->info().rounds() : 1;
    if (first_round == 0) {
      SplitKeys();
      FillUncoveredRows();
      if (plan == nullptr) narrow_ = NarrowHeads(problem_, range_, run_);
    }
    // A query's rounds are merged in order, so they may not overlap: either whole heads run side by
    // side, each through all its rounds, or the blocks of one round at a time. Same bits either
    // way.
    if (rounds > 1 && heads() >= std::int64_t{2} * run_.threads) {
      ParallelFor(heads(), run_, [&](std::int64_t i) {
        const std::int64_t head = range_.first + i;
        for (std::int64_t round = 0; round < rounds; ++round) {
          const Items items(problem_, plan, round, head, head + 1);
          for (std::int64_t item = 0; item < items.size(); ++item) {
            RunItem(items[item], 0, first_round + round);
          }
        }
      });
    } else {
      for (std::int64_t round = 0; round < rounds; ++round) {
        const Items items(problem_, plan, round, range_.first, range_.last);
        ParallelFor(items.size() * chunks_, run_, [&](std::int64_t i) {
          RunItem(items[i / chunks_], i % chunks_, first_round + round);
        });
      }
    }
  }

  void Finish() {
    if (merges_) FinishRounds();
    for (std::size_t head = 0; head < nanoseconds_.size(); ++head) {
      Statistics::Head& to =
          outputs_.statistics->heads[static_cast<std::size_t>(range_.first) + head];
      to.seconds += 1e-9 * static_cast<double>(nanoseconds_[head]);
      narrow_.Describe(range_.first + static_cast<std::int64_t>(head), to);
    }
  }

 private:
  std::int64_t heads() const { return range_.last - range_.first; }
  /// Among those of its range.
  std::int64_t IndexOf(std::int64_t b, std::int64_t h) const {
    return b * problem_.query_heads + h - range_.first;
  }
  HeadOutput OutputOf(std::int64_t index) const {
    const std::int64_t head = range_.first + index;
    return {outputs_, head / problem_.query_heads, head % problem_.query_heads};
  }

  void SplitKeys() {
    if (plan_ != nullptr || problem_.queries > kBlockRows) return;
    chunks_ = std::max<std::int64_t>(1, (problem_.keys + kChunkKeys - 1) / kChunkKeys);
    if (chunks_ == 1) return;
    parts_ = Partials(heads() * problem_.queries * chunks_, problem_.value_depth);
    chunks_in_ = std::vector<std::atomic<std::int64_t>>(static_cast<std::size_t>(heads()));
  }

  std::int64_t RowIndex(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return IndexOf(b, h) * problem_.queries + i;
  }
  /// What a query's rounds are merged in: the outputs' own memory, as far as that holds it.
  kernels::Partial Running(std::int64_t b, std::int64_t h, std::int64_t i) {
    const std::int64_t at = RowIndex(b, h, i);
    kernels::Partial row = running_.Row(at);
    if (row.out == nullptr) row.out = reinterpret_cast<float*>(HeadOutput{outputs_, b, h}.Row(i));
    if (row.max == nullptr && outputs_.lse) {
      row.max = static_cast<float*>(outputs_.lse->data) + range_.first * problem_.queries + at;
    }
    return row;
  }

  void FillUncoveredRows() {
    std::vector<HeadView> plans;
    for (std::int64_t i = 0; i < heads() && plan_ != nullptr; ++i) {
      const HeadOutput output = OutputOf(i);
      plans.push_back(plan_->head(0, output.batch, output.head));
    }
    const auto plan_of = [&](std::int64_t i) {
      return plans.empty() ? nullptr : &plans[static_cast<std::size_t>(i)];
    };
    bool any = false;
    for (std::int64_t i = 0; i < heads() && !any; ++i) any = AnyUncovered(problem_, plan_of(i));
    if (!any) return;
    ParallelRows(heads(), problem_.queries, run_,
                 [&](std::int64_t index, std::int64_t begin, std::int64_t end) {
                   const HeadOutput output = OutputOf(index);
                   FillUncovered(problem_, plan_of(index), output.batch, begin, end,
                                 [&](std::int64_t i, const float* row, float lse) {
                                   if (!merges_) {
                                     output.Store(i, row, lse);
                                     return;
                                   }
                                   const kernels::Partial running =
                                       Running(output.batch, output.head, i);
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
    nanoseconds_[static_cast<std::size_t>(IndexOf(item.batch, item.head))] +=
        std::chrono::duration_cast<std::chrono::nanoseconds>(taken).count();
  }

  /// `chunk` of the keys, without a plan.
  void Attend(const Item& item, std::int64_t chunk, std::int64_t round) {
    const std::int64_t keys = ValidCount(problem_.valid_keys, item.batch, problem_.keys);
    const std::int64_t first = chunks_ > 1 ? std::min(keys, chunk * kChunkKeys) : 0;
    const std::int64_t last = chunks_ > 1 ? std::min(keys, first + kChunkKeys) : keys;
    DenseRanges implicit;
    const kernels::BlockTask task = TaskOf(problem_, item, first, last, implicit);
    const kernels::Partial partial = narrow_.Attend(item, task);
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
    const auto head = static_cast<std::size_t>(IndexOf(item.batch, item.head));
    return chunks_in_[head].fetch_add(1) + 1 == chunks_;
  }

  void MergeChunks(const HeadOutput& output, std::int64_t i) {
    const std::int64_t first = RowIndex(output.batch, output.head, i) * chunks_;
    const kernels::Partial row = parts_.Row(first);
    for (std::int64_t c = 1; c < chunks_; ++c) kernels::MergePartial(row, parts_.Row(first + c));
    output.Finish(i, row);
  }

  void FinishRounds() {
    ParallelRows(heads(), problem_.queries, run_,
                 [&](std::int64_t index, std::int64_t begin, std::int64_t end) {
                   const HeadOutput output = OutputOf(index);
                   for (std::int64_t i = begin; i < end; ++i) {
                     output.Finish(i, Running(output.batch, output.head, i));
                   }
                 });
  }

  const Problem& problem_;
  const HeadRange range_;
  const Run run_;
  const Outputs& outputs_;
  const bool merges_;               ///< several rounds
  const PlanView* plan_ = nullptr;  ///< of the rounds that run
  NarrowHeads narrow_;              ///< of a round without a plan
  std::int64_t chunks_ = 1;
  Partials running_;                                    ///< of all rows, over the rounds so far
  Partials parts_;                                      ///< of all rows, a chunk after the other
  std::vector<std::atomic<std::int64_t>> chunks_in_;    ///< of each head
  std::vector<std::atomic<std::int64_t>> nanoseconds_;  ///< of each head, for statistics
};

}  // namespace

void ForwardRounds(const Problem& problem, std::int64_t rounds, const PlanOfRounds& plan_of_rounds,
                   const Outputs& outputs) {
  Forward forward(problem, AllHeads(problem), rounds, problem.run, outputs);
  for (std::int64_t round = 0; round < rounds;) {
    const PlanView& plan = plan_of_rounds(round);
    forward.AddRounds(&plan, round);
    round += plan.info().rounds();
  }
  forward.Finish();
}

void ForwardDense(const Problem& problem, const HeadRange& heads, const Run& run,
                  const Outputs& outputs) {
  Forward forward(problem, heads, 1, run, outputs);
  forward.AddRounds(nullptr, 0);
  forward.Finish();
}

}  // namespace smyrf
