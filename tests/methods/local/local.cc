#include "methods/local/local.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "methods/structure.h"
#include "run/backward.h"
#include "run/forward.h"
#include "run/statistics.h"

namespace smyrf {
namespace {

constexpr std::int64_t kLeastBlock = 4;
constexpr std::int64_t kMostBlock = 4096;

const Dial kBlock{
    .option = kClusterSizeOption,
    .meaning = "keys a block",
    .accepted = "accepted are integers from 4 to 4096",
    .least = static_cast<double>(kLeastBlock),
    .most = static_cast<double>(kMostBlock),
    .default_value = static_cast<double>(kDefaultBlock),
};

std::vector<std::int32_t> Rows(const ValidLists& valid, std::int64_t batch, std::int64_t all) {
  if (!valid.empty()) return valid[static_cast<std::size_t>(batch)];
  std::vector<std::int32_t> rows(static_cast<std::size_t>(all));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

/// Valid queries and keys in their order, each cut into as many blocks of nearly equal size.
void PlanHead(std::int64_t block, HeadPlan& head) {
  const std::int64_t queries = std::ssize(head.query_order);
  const std::int64_t keys = std::ssize(head.key_order);
  if (queries == 0 || keys == 0) {
    head = {};
    return;
  }
  const std::int64_t count = std::clamp<std::int64_t>(keys / block, 1, std::min(queries, keys));
  const auto cut = [count](std::int64_t rows, std::int64_t at) {
    return static_cast<std::int32_t>(rows * std::clamp<std::int64_t>(at, 0, count) / count);
  };
  for (std::int64_t i = 0; i < count; ++i) {
    const auto range = static_cast<std::uint32_t>(i);
    head.blocks.push_back({cut(queries, i), cut(queries, i + 1), range, range + 1});
    head.ranges.push_back({cut(keys, i - 1), cut(keys, i + 2)});
  }
}

class LocalColumns final : public ReferenceColumns {
 public:
  explicit LocalColumns(const PlanView& plan) : plan_(plan) {}
  std::vector<std::int64_t> Of(std::int64_t b, std::int64_t h, std::int64_t i) const override {
    const HeadView head = plan_.head(0, b, h);
    const auto& order = head.query_order;
    const auto rank = std::find(order.begin(), order.end(), i) - order.begin();
    for (const QueryBlock& block : head.blocks) {
      if (rank < block.begin || rank >= block.end) continue;
      const KeyRange range = head.ranges[block.first_range];
      return {head.key_order.begin() + range.begin, head.key_order.begin() + range.end};
    }
    return {};
  }

 private:
  const PlanView plan_;
};

class Local final : public AttentionMethod {
 public:
  const MethodInfo& info() const override {
    static const std::array dials{&kBlock};
    static const MethodInfo info{.method = kLocal,
                                 .name = "local",
                                 .summary = "blocks of neighbours, exactly",
                                 .dials = dials,
                                 .takes_dropout = true};
    return info;
  }
  void SetDials(const Request& request, PlanInfo& plan) const override {
    plan.cluster_size = request.options.cluster_size.value_or(kDefaultBlock);
  }

  void MakePlan(const Problem& problem, PlanParts& plan) const override {
    plan.heads.resize(static_cast<std::size_t>(plan.batch * plan.query_heads));
    for (std::int64_t b = 0; b < plan.batch; ++b) {
      for (std::int64_t h = 0; h < plan.query_heads; ++h) {
        HeadPlan& head = plan.heads[plan.HeadIndex(0, b, h)];
        head.query_order = Rows(problem.valid_queries, b, problem.queries);
        head.key_order = Rows(problem.valid_keys, b, problem.keys);
        PlanHead(plan.cluster_size, head);
      }
    }
  }
  /// A plan may come from a file: what Columns and the executor index by must be in range.
  void CheckStructure(const PlanView& plan) const override {
    const PlanInfo& info = plan.info();
    RequireCounts(plan, info.batch * info.query_heads, 0);
    ForEachEntry(plan, [&](std::int64_t b, EntryRows& rows) {
      for (std::int64_t h = 0; h < info.query_heads; ++h) CheckHead(plan.head(0, b, h), rows);
    });
  }
  double Density(const PlanView& plan, std::int64_t batch, std::int64_t head) const override {
    return DensityOfBlocks(plan, batch, head);
  }

  double Forward(const Problem& problem, const PlanInfo& info, const Plan* plan,
                 const Outputs& outputs) const override {
    Carried carried(*this, problem, info, plan);
    ForwardRounds(
        problem, 1, [&](std::int64_t) -> const PlanView& { return carried.view; }, outputs);
    if (outputs.statistics != nullptr) Describe(carried.view, *outputs.statistics);
    if (outputs.plan != nullptr && plan == nullptr) *outputs.plan = Pack(std::move(carried.own));
    return 0.0;
  }
  void Backward(const Problem& problem, const PlanInfo& info, const Plan* plan,
                const BackwardCall& call) const override {
    const Carried carried(*this, problem, info, plan);
    BackwardRounds(problem, 1, [&](std::int64_t) -> const PlanView& { return carried.view; }, call);
  }
  std::unique_ptr<ReferenceColumns> Columns(const Problem&, const PlanView& plan) const override {
    return std::make_unique<LocalColumns>(plan);
  }
  void Estimate(const Problem& problem, const PlanInfo& info,
                Statistics& statistics) const override {
    Describe(Carried(*this, problem, info, nullptr).view, statistics);
  }

 private:
  /// The plan that a call brings, or else its own.
  struct Carried {
    Carried(const Local& method, const Problem& problem, const PlanInfo& info, const Plan* plan)
        : own(EmptyParts(problem, info)), view(plan != nullptr ? PlanView(*plan) : PlanView(own)) {
      if (plan == nullptr) method.MakePlan(problem, own);
    }
    PlanParts own;
    PlanView view;
  };

  static void CheckHead(const HeadView& head, EntryRows& rows) {
    Require(!head.non_finite && !head.dense, "heads", "the method marks none");
    CheckBlocks(head, false, rows);
    if (head.blocks.empty()) return;
    Require(rows.keys.Holds(head.key_order), "orders", "key_order must hold each valid key once");
    for (const QueryBlock& block : head.blocks) {
      Require(block.last_range == block.first_range + 1 && block.first_node == block.last_node,
              "blocks", "a block has one range of keys, and no nodes");
      const KeyRange& range = head.ranges[block.first_range];
      Require(range.begin < range.end && IsPart(range.begin, range.end, std::ssize(head.key_order)),
              "ranges", "a block needs keys of the key order");
    }
  }
  static void Describe(const PlanView& plan, Statistics& statistics) {
    for (std::int64_t b = 0; b < statistics.batch; ++b) {
      for (std::int64_t h = 0; h < statistics.query_heads; ++h) {
        auto& head = statistics.heads[static_cast<std::size_t>(b * statistics.query_heads + h)];
        DescribeHead(plan.head(0, b, h), head);
        head.density = DensityOfBlocks(plan, b, h);
      }
    }
  }
};

}  // namespace

const AttentionMethod& LocalMethod() {
  static const Local method;
  return method;
}

}  // namespace smyrf
