#include "methods/lsh/lsh.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/message.h"
#include "methods/lsh/planner.h"
#include "methods/structure.h"
#include "run/backward.h"
#include "run/forward.h"
#include "run/statistics.h"

namespace smyrf {
namespace {

const Dial kHashes{
    .option = kHashesOption,
    .meaning = "rounds of hashing",
    .accepted = "accepted are integers from 1 to 4096",
    .least = 1.0,
    .most = static_cast<double>(kMaxHashes),
    .default_value = static_cast<double>(kDefaultHashes),
};

const Dial kClusterSize{
    .option = kClusterSizeOption,
    .meaning = "keys a cluster",
    .accepted = "accepted are integers from 1 to 2147483647",
    .least = 1.0,
    .most = static_cast<double>(kMaxRows),
    .default_value = static_cast<double>(kDefaultClusterSize),
};

/// The ranges of the blocks cut the key order from front to back.
void CheckClusters(const HeadView& head, Permutations& keys) {
  Require(keys.Holds(head.key_order), "orders", "key_order must hold each valid key once");
  Require(!head.dense || head.blocks.size() == 1, "blocks", "a dense head has a single cluster");
  std::int32_t next = 0;
  for (const QueryBlock& block : head.blocks) {
    Require(block.first_range < block.last_range && block.first_node == block.last_node, "blocks",
            "a cluster has keys, and no nodes");
    for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
      const KeyRange& range = head.ranges[r];
      Require(range.begin == next && range.begin < range.end, "ranges",
              "each key must be in one cluster");
      next = range.end;
    }
  }
  Require(next == std::ssize(head.key_order), "ranges", "each key must be in one cluster");
}

class LshColumns final : public ReferenceColumns {
 public:
  explicit LshColumns(const PlanView& plan) : plan_(plan) {}

  bool NonFinite(std::int64_t b, std::int64_t h) const override {
    return plan_.head(0, b, h).non_finite;
  }
  std::vector<std::int64_t> Of(std::int64_t b, std::int64_t h, std::int64_t i) const override {
    std::vector<std::int64_t> keys;
    for (std::int64_t round = 0; round < plan_.info().rounds(); ++round) {
      const HeadView head = plan_.head(round, b, h);
      const auto rank =
          std::find(head.query_order.begin(), head.query_order.end(), i) - head.query_order.begin();
      for (const QueryBlock& block : head.blocks) {
        if (rank < block.begin || rank >= block.end) continue;
        for (std::uint32_t r = block.first_range; r < block.last_range; ++r) {
          for (std::int32_t j = head.ranges[r].begin; j < head.ranges[r].end; ++j) {
            keys.push_back(head.key_order[static_cast<std::size_t>(j)]);
          }
        }
      }
    }
    return keys;
  }

 private:
  const PlanView plan_;
};

/// Plans a few rounds at a time, so that memory does not grow with their number.
class Rounds {
 public:
  Rounds(const Problem& problem, const PlanInfo& info, const Plan* plan, std::int64_t at_once)
      : problem_(problem), rounds_(info.rounds()), at_once_(at_once) {
    if (plan != nullptr) {
      view_.emplace(*plan);
    } else {
      parts_ = EmptyParts(problem, info);
    }
  }

  std::int64_t count() const { return rounds_; }
  double seconds() const { return seconds_; }
  PlanParts& parts() { return parts_; }

  const PlanView& From(std::int64_t first_round) {
    if (view_ && !is_own_) return *view_;
    const auto start = std::chrono::steady_clock::now();
    PlanLsh(problem_, first_round, std::min(at_once_, rounds_ - first_round), parts_);
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    is_own_ = true;
    return view_.emplace(parts_);
  }

 private:
  const Problem& problem_;
  std::int64_t rounds_, at_once_;
  PlanParts parts_;
  std::optional<PlanView> view_;
  bool is_own_ = false;
  double seconds_ = 0.0;
};

/// Rounds that are planned together. Without rows there is nothing to plan more than once for.
std::int64_t PlannedAtOnce(const Problem& problem, const PlanInfo& info) {
  if (problem.queries * problem.keys == 0) return 1;
  return RoundsAtOnce(problem, info.cluster_size);
}

/// The heads of the rounds in `plan`, of which the first is `first_round`: later rounds only add
/// pairs.
void Describe(const PlanView& plan, std::int64_t first_round, Statistics& statistics) {
  for (std::int64_t b = 0; b < plan.info().batch; ++b) {
    for (std::int64_t h = 0; h < plan.info().query_heads; ++h) {
      auto& to = statistics.heads[static_cast<std::size_t>(b * plan.info().query_heads + h)];
      const HeadView head = plan.head(0, b, h);
      if (first_round == 0) {
        DescribeHead(head, to);
        to.density = DensityOfBlocks(plan, b, h);
      } else if (!head.blocks.empty()) {
        to.density += DensityOfBlocks(plan, b, h);
      }
    }
  }
}

class Lsh final : public AttentionMethod {
 public:
  const MethodInfo& info() const override {
    static const std::array dials{&kHashes, &kClusterSize};
    static const MethodInfo info{.method = Method::kLsh,
                                 .name = "lsh",
                                 .summary = "balanced clusters of an asymmetric hash",
                                 .dials = dials,
                                 .takes_dropout = true,
                                 .takes_seed = true};
    return info;
  }

  void CheckCall(const Request& request) const override {
    if (request.problem.scale > 0.0) return;
    Fail(ErrorKind::kValue, "scale: got ", request.problem.scale,
         ", method lsh needs a scale above 0 (the nearest keys would have the smallest logits); "
         "use method='dense' or negate query");
  }
  void SetDials(const Request& request, PlanInfo& plan) const override {
    plan.n_hashes = request.options.n_hashes.value_or(kDefaultHashes);
    plan.cluster_size = request.options.cluster_size.value_or(kDefaultClusterSize);
  }
  void MakePlan(const Problem& problem, PlanParts& plan) const override {
    PlanLsh(problem, 0, plan.n_hashes, plan);
  }

  void CheckStructure(const PlanView& plan) const override {
    const PlanInfo& info = plan.info();
    RequireCounts(plan, info.rounds() * info.batch * info.query_heads, 0);
    ForEachEntry(plan, [&](std::int64_t b, EntryRows& rows) {
      for (std::int64_t round = 0; round < info.rounds(); ++round) {
        for (std::int64_t h = 0; h < info.query_heads; ++h) {
          const HeadView head = plan.head(round, b, h);
          const HeadView first = plan.head(0, b, h);
          Require(head.dense == first.dense && head.non_finite == first.non_finite, "heads",
                  "dense and non_finite must be the same in all rounds");
          CheckBlocks(head, head.non_finite || (head.dense && round > 0), rows);
          if (!head.blocks.empty()) CheckClusters(head, rows.keys);
        }
      }
    });
  }
  double Density(const PlanView& plan, std::int64_t batch, std::int64_t head) const override {
    return DensityOfBlocks(plan, batch, head);
  }

  double Forward(const Problem& problem, const PlanInfo& info, const Plan* plan,
                 const Outputs& outputs) const override {
    const bool keep = outputs.plan != nullptr && plan == nullptr;
    Rounds rounds(problem, info, plan, keep ? info.n_hashes : PlannedAtOnce(problem, info));
    ForwardRounds(
        problem, rounds.count(),
        [&](std::int64_t first_round) -> const PlanView& {
          const PlanView& view = rounds.From(first_round);
          if (outputs.statistics != nullptr) Describe(view, first_round, *outputs.statistics);
          return view;
        },
        outputs);
    if (keep) *outputs.plan = Pack(std::move(rounds.parts()));
    return rounds.seconds();
  }
  void Backward(const Problem& problem, const PlanInfo& info, const Plan* plan,
                const BackwardCall& call) const override {
    Rounds rounds(problem, info, plan, PlannedAtOnce(problem, info));
    BackwardRounds(
        problem, rounds.count(),
        [&](std::int64_t first_round) -> const PlanView& { return rounds.From(first_round); },
        call);
  }
  std::unique_ptr<ReferenceColumns> Columns(const Problem& /*problem*/,
                                            const PlanView& plan) const override {
    return std::make_unique<LshColumns>(plan);
  }
  void Estimate(const Problem&, const PlanInfo&, Statistics&) const override {
    Fail(ErrorKind::kUnsupported,
         "estimate: method lsh has no estimate of its error; use method='auto', or count "
         "pairs with plan(...).density");
  }
  const char* WhyDense() const override { return "a single cluster"; }
};

}  // namespace

const AttentionMethod& LshMethod() {
  static const Lsh method;
  return method;
}

}  // namespace smyrf
