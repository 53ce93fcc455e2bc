#include "run/narrow.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/parallel.h"

namespace smyrf {
namespace {

using kernels::RowsMeasure;

/// Fewer do not pay for packing.
constexpr std::int64_t kNarrowKeys = 256;
constexpr std::int64_t kNarrowQueries = 128;
/// Rows that are measured or packed at a time; even.
constexpr std::int64_t kPackRows = 256;
/// What bfloat16 weights and values add, relative to out: half a unit of their last place.
constexpr double kBFloat16Error = 0x1p-9;

/// Stretches of rows of several lists, as one range of tasks.
struct Stretches {
  struct Stretch {
    std::size_t list;
    std::int64_t begin, end;
  };
  void Add(std::size_t list, std::int64_t rows) {
    for (std::int64_t begin = 0; begin < rows; begin += kPackRows) {
      all.push_back({list, begin, std::min(rows, begin + kPackRows)});
    }
  }
  std::vector<Stretch> all;
};

kernels::Rows KeyRows(const Problem& problem, const TensorView& view, std::int64_t batch,
                      std::int64_t key_head) {
  return kernels::RowsOf(view, batch, key_head, ValidOf(problem.valid_keys, batch));
}

/// Of out, relative, for an error of the logits.
double ErrorOfOut(double logits) { return std::hypot(logits, kBFloat16Error); }

}  // namespace

NarrowHeads::NarrowHeads(const Problem& problem, const HeadRange& range, const Run& run)
    : problem_(&problem) {
  const Precision allowed = problem.narrowing.precision;
  if (allowed == Precision::kFloat32 || problem.dropout.active()) return;
  if (!kernels::HasPrecision(Precision::kInt8) && !kernels::HasPrecision(Precision::kInt16)) return;
  if (allowed == Precision::kAuto && problem.narrowing.tolerance < kBFloat16Error) return;
  if (range.first == range.last) return;
  FindGroups(range);
  Choose(run);
  Pack(run);
}

void NarrowHeads::FindGroups(const HeadRange& range) {
  const Problem& problem = *problem_;
  for (std::int64_t head = range.first; head < range.last; ++head) {
    const std::int64_t batch = head / problem.query_heads;
    const std::int64_t key_head = problem.KeyHead(head % problem.query_heads);
    if (groups_.empty() || groups_.back().batch != batch || groups_.back().key_head != key_head) {
      Group& group = groups_.emplace_back();
      group.batch = batch;
      group.key_head = key_head;
      group.first_head = head;
      group.queries = ValidCount(problem.valid_queries, batch, problem.queries);
      group.keys = ValidCount(problem.valid_keys, batch, problem.keys);
    }
    groups_.back().last_head = head + 1;
  }
  first_group_ = groups_.front().batch * problem.key_heads + groups_.front().key_head;
}

void NarrowHeads::Choose(const Run& run) {
  const Problem& problem = *problem_;
  // Keys of a group, then the queries of each of its heads.
  struct List {
    kernels::Rows rows;
    RowsMeasure measure;
  };
  std::vector<List> lists;
  Stretches stretches;
  for (const Group& group : groups_) {
    const bool pays = group.keys >= kNarrowKeys && group.queries >= kNarrowQueries;
    stretches.Add(lists.size(), pays ? group.keys : 0);
    lists.push_back({KeyRows(problem, problem.key, group.batch, group.key_head), {}});
    for (std::int64_t head = group.first_head; head < group.last_head; ++head) {
      stretches.Add(lists.size(), pays ? group.queries : 0);
      lists.push_back({kernels::RowsOf(problem.query, group.batch, head % problem.query_heads,
                                       ValidOf(problem.valid_queries, group.batch)),
                       {}});
    }
  }
  std::vector<RowsMeasure> measures(stretches.all.size());
  ParallelFor(std::ssize(stretches.all), run, [&](std::int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    const Stretches::Stretch& stretch = stretches.all[at];
    measures[at] =
        kernels::MeasureRows(lists[stretch.list].rows, stretch.begin, stretch.end, problem.depth);
  });
  for (std::size_t i = 0; i < measures.size(); ++i) {
    lists[stretches.all[i].list].measure.Add(measures[i]);
  }
  const bool chooses = problem.narrowing.precision == Precision::kAuto;
  std::size_t list = 0;
  for (Group& group : groups_) {
    const std::size_t keys = list++;
    const std::size_t queries =
        std::exchange(list, list + static_cast<std::size_t>(group.last_head - group.first_head));
    if (lists[keys].measure.count == 0) continue;
    for (const Precision precision : {Precision::kInt8, Precision::kInt16}) {
      if (!chooses && precision != problem.narrowing.precision) continue;
      if (!kernels::HasPrecision(precision)) continue;
      std::vector<double> errors;
      bool holds = true;
      for (std::size_t i = queries; i < list; ++i) {
        errors.push_back(kernels::LogitError(lists[i].measure, lists[keys].measure, problem.depth,
                                             problem.scale, precision));
        holds = holds && std::isfinite(errors.back()) &&
                (!chooses || ErrorOfOut(errors.back()) <= problem.narrowing.tolerance);
      }
      if (!holds) continue;
      group.precision = precision;
      group.errors = std::move(errors);
      break;
    }
  }
}

kernels::NarrowKeys NarrowHeads::Group::packed() const {
  return {reinterpret_cast<std::byte*>(numbers.get()), stride, steps.get(),
          reinterpret_cast<std::int32_t*>(offsets.get())};
}

void NarrowHeads::Pack(const Run& run) {
  const Problem& problem = *problem_;
  Stretches stretches;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    if (group.precision == Precision::kFloat32) continue;
    group.stride = kernels::NarrowBytes(group.precision, problem.depth);
    group.numbers = kernels::Floats(group.keys * group.stride / 4);
    group.steps = kernels::Floats(group.keys);
    group.offsets = kernels::Floats(group.keys);
    group.values = kernels::Floats((group.keys + 1) / 2 * problem.value_depth);
    stretches.Add(g, group.keys);
  }
  ParallelFor(std::ssize(stretches.all), run, [&](std::int64_t i) {
    const Stretches::Stretch& stretch = stretches.all[static_cast<std::size_t>(i)];
    const Group& group = groups_[stretch.list];
    kernels::PackKeys(KeyRows(problem, problem.key, group.batch, group.key_head), stretch.begin,
                      stretch.end, problem.depth, group.precision, group.packed());
    kernels::PackValues(KeyRows(problem, problem.value, group.batch, group.key_head), stretch.begin,
                        stretch.end, problem.value_depth,
                        reinterpret_cast<std::uint32_t*>(group.values.get()));
  });
}

const NarrowHeads::Group* NarrowHeads::GroupOf(std::int64_t batch, std::int64_t head) const {
  if (groups_.empty()) return nullptr;
  const std::int64_t group = batch * problem_->key_heads + problem_->KeyHead(head) - first_group_;
  const Group& found = groups_[static_cast<std::size_t>(group)];
  return found.precision == Precision::kFloat32 ? nullptr : &found;
}

kernels::Partial NarrowHeads::Attend(const Item& item, const kernels::BlockTask& task) const {
  const Group* group = GroupOf(item.batch, item.head);
  if (group == nullptr) return kernels::AttendBlock(task);
  return kernels::AttendNarrowBlock({task, group->precision, group->packed(),
                                     reinterpret_cast<const std::uint32_t*>(group->values.get())});
}

void NarrowHeads::Describe(std::int64_t head, Statistics::Head& to) const {
  to.precision = Precision::kFloat32;
  if (problem_ == nullptr) return;
  const Group* group = GroupOf(head / problem_->query_heads, head % problem_->query_heads);
  if (group == nullptr) return;
  to.precision = group->precision;
  to.expected_lse_error = group->errors[static_cast<std::size_t>(head - group->first_head)];
  to.expected_error = ErrorOfOut(to.expected_lse_error);
}

}  // namespace smyrf
