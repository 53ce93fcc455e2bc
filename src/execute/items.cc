#include "execute/items.h"

#include <cstddef>

namespace smyrf {

using kernels::kBlockRows;

std::span<const std::int32_t> ValidOf(const ValidLists& lists, std::int64_t batch) {
  if (lists.empty()) return {};
  return lists[static_cast<std::size_t>(batch)];
}

std::int64_t ValidCount(const ValidLists& lists, std::int64_t batch, std::int64_t all) {
  return lists.empty() ? all : std::ssize(lists[static_cast<std::size_t>(batch)]);
}

void AddItems(const Problem& problem, const Plan& plan, std::int64_t round, std::int64_t batch,
              std::int64_t head, std::vector<Item>& items) {
  const auto add = [&](Item item, std::int64_t begin, std::int64_t end) {
    // Blocks of nearly equal size: no last block of a few rows.
    const std::int64_t pieces = (end - begin + kBlockRows - 1) / kBlockRows;
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      item.begin = begin + (end - begin) * piece / pieces;
      item.end = begin + (end - begin) * (piece + 1) / pieces;
      items.push_back(item);
    }
  };
  Item item;
  item.batch = batch;
  item.head = head;
  if (plan.method != Method::kLsh) {
    return add(item, 0, ValidCount(plan.valid_queries, batch, problem.queries));
  }
  item.plan = &plan.head(round, batch, head);
  for (const QueryBlock& block : item.plan->blocks) {
    item.block = &block;
    add(item, block.begin, block.end);
  }
}

kernels::BlockTask TaskOf(const Problem& problem, const Plan& plan, const Item& item,
                          std::int64_t first_key, std::int64_t last_key, DenseRanges& implicit) {
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
  std::span<const std::int32_t> query_order = ValidOf(plan.valid_queries, item.batch);
  std::span<const std::int32_t> key_order = ValidOf(plan.valid_keys, item.batch);
  if (item.plan != nullptr) {
    query_order = item.plan->query_order;
    key_order = item.plan->key_order;
  }
  task.query = kernels::RowsOf(problem.query, item.batch, item.head, query_order);
  task.key = kernels::RowsOf(problem.key, item.batch, key_head, key_order);
  task.value = kernels::RowsOf(problem.value, item.batch, key_head, key_order);
  if (item.plan != nullptr) {
    task.ranges =
        std::span(item.plan->ranges)
            .subspan(item.block->first_range, item.block->last_range - item.block->first_range);
  } else {
    implicit = RangesOfBlock(problem.mask, key_order, task.query.Position(item.begin),
                             task.query.Position(item.end - 1), first_key, last_key);
    task.ranges = implicit.span();
  }
  return task;
}

}  // namespace smyrf
