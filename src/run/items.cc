#include "run/items.h"

#include <algorithm>
#include <cstddef>

namespace smyrf {

using kernels::kBlockRows;

Items::Items(const Problem& problem, const PlanView* plan, std::int64_t round, std::int64_t first,
             std::int64_t last)
    : problem_(problem), plan_(plan), round_(round), first_(first) {
  const auto add = [&](std::int64_t queries) {
    begins_.push_back(begins_.back() + (queries + kBlockRows - 1) / kBlockRows);
  };
  for (std::int64_t head = first; head < last; ++head) {
    if (plan == nullptr) {
      add(ValidCount(problem.valid_queries, head / problem.query_heads, problem.queries));
      continue;
    }
    first_blocks_.push_back(std::ssize(begins_) - 1);
    for (const QueryBlock& block : Head(head).blocks) add(block.end - block.begin);
  }
}

HeadView Items::Head(std::int64_t head) const {
  return plan_->head(round_, head / problem_.query_heads, head % problem_.query_heads);
}

Item Items::operator[](std::int64_t i) const {
  // The last that begins at or before: those without items begin where the next one does.
  const auto last_of = [](const std::vector<std::int64_t>& begins, std::int64_t at) {
    return std::upper_bound(begins.begin(), begins.end(), at) - begins.begin() - 1;
  };
  const std::int64_t stretch = last_of(begins_, i);
  const auto at = static_cast<std::size_t>(stretch);
  const std::int64_t piece = i - begins_[at];
  const std::int64_t pieces = begins_[at + 1] - begins_[at];
  Item item;
  std::int64_t head = first_ + stretch;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  if (plan_ != nullptr) {
    const std::int64_t of_head = last_of(first_blocks_, stretch);
    head = first_ + of_head;
    item.plan = Head(head);
    item.block = &item.plan.blocks[static_cast<std::size_t>(
        stretch - first_blocks_[static_cast<std::size_t>(of_head)])];
    begin = item.block->begin;
    end = item.block->end;
  } else {
    end = ValidCount(problem_.valid_queries, head / problem_.query_heads, problem_.queries);
  }
  item.batch = head / problem_.query_heads;
  item.head = head % problem_.query_heads;
  // Blocks of nearly equal size: no last block of a few rows.
  item.begin = begin + (end - begin) * piece / pieces;
  item.end = begin + (end - begin) * (piece + 1) / pieces;
  return item;
}

kernels::BlockTask TaskOf(const Problem& problem, const Item& item, std::int64_t first_key,
                          std::int64_t last_key, DenseRanges& implicit) {
  const std::int64_t key_head = problem.KeyHead(item.head);
  kernels::BlockTask task;
  task.depth = problem.depth;
  task.value_depth = problem.value_depth;
  task.query_begin = item.begin;
  task.query_end = item.end;
  task.scale = static_cast<float>(problem.scale);
  task.mask = &problem.mask;
  task.batch = item.batch;
  task.head = item.head;
  task.dropout = &problem.dropout;
  std::span<const std::int32_t> query_order = ValidOf(problem.valid_queries, item.batch);
  std::span<const std::int32_t> key_order = ValidOf(problem.valid_keys, item.batch);
  if (item.block != nullptr) {
    query_order = item.plan.query_order;
    key_order = item.plan.key_order;
  }
  task.query = kernels::RowsOf(problem.query, item.batch, item.head, query_order);
  task.key = kernels::RowsOf(problem.key, item.batch, key_head, key_order);
  task.value = kernels::RowsOf(problem.value, item.batch, key_head, key_order);
  if (item.block != nullptr) {
    task.ranges = item.plan.ranges.subspan(item.block->first_range,
                                           item.block->last_range - item.block->first_range);
  } else {
    implicit = RangesOfBlock(problem.mask, key_order, task.query.Position(item.begin),
                             task.query.Position(item.end - 1), first_key, last_key);
    task.ranges = implicit.span();
    task.partial = std::span(implicit.partial).first(implicit.count);
  }
  return task;
}

}  // namespace smyrf
