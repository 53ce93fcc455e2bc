// Plans that plan() would not make.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "fuzzed_call.h"

namespace smyrf::fuzz {

template <class Integer>
void DamageNumber(Bytes& bytes, Integer& number) {
  using Limits = std::numeric_limits<Integer>;
  // In a wider type, for neighbours of the limits.
  const auto wide = static_cast<std::int64_t>(number);
  const std::int64_t step = bytes.Of<std::int64_t>({1, -1, 8, -8});
  switch (bytes.Between(0, 5)) {
    case 0:
      number = 0;
      break;
    case 1:
      number = Limits::max();
      break;
    case 2:
      number = Limits::min();
      break;
    case 3:
      number = static_cast<Integer>(bytes.Between(-2, 300));
      break;
    default:
      if (wide < Limits::max() - 8 && wide > Limits::min() + 8) {
        number = static_cast<Integer>(wide + step);
      } else {
        number = 1;
      }
      break;
  }
}

template <class T>
T* AnyOf(Bytes& bytes, std::vector<T>& list) {
  if (list.empty()) return nullptr;
  return &list[bytes.Between<std::size_t>(0, list.size() - 1)];
}

/// Longer, shorter, an entry twice or two exchanged; true where the caller is to change an entry.
template <class T>
bool DamageList(Bytes& bytes, std::vector<T>& list) {
  switch (bytes.Between(0, 10)) {
    case 8:  // any entry, not only the last
      if (!list.empty()) list.erase(list.begin() + (AnyOf(bytes, list) - list.data()));
      return false;
    case 9:
      if (!list.empty()) {
        const T copy = *AnyOf(bytes, list);
        list.insert(list.begin() + (AnyOf(bytes, list) - list.data()), copy);
      }
      return false;
    case 10:
      if (!list.empty()) {
        const T copy = *AnyOf(bytes, list);
        *AnyOf(bytes, list) = copy;
      }
      return false;
    case 0:
      if (!list.empty()) list.pop_back();
      return false;
    case 1:
      list.push_back(list.empty() ? T{} : list.back());
      return false;
    case 2:
      if (!list.empty()) std::swap(*AnyOf(bytes, list), list.front());
      return false;
    case 3:
      if (bytes.Rarely(2)) list.clear();
      return false;
    default:
      return !list.empty();
  }
}

inline void DamageIndices(Bytes& bytes, std::vector<std::int32_t>& list) {
  if (DamageList(bytes, list)) DamageNumber(bytes, *AnyOf(bytes, list));
}

/// Damage of several numbers that agree with each other: each index stays within its list.
inline void DamageBlocks(Bytes& bytes, HeadPlan& head) {
  if (head.blocks.empty()) return;
  QueryBlock& block = *AnyOf(bytes, head.blocks);
  const QueryBlock other = *AnyOf(bytes, head.blocks);
  switch (bytes.Between(0, 6)) {
    case 0:  // evaluates nothing
      block.last_range = block.first_range;
      block.last_node = block.first_node;
      break;
    case 1:  // the exact keys of another block
      block.first_range = other.first_range;
      block.last_range = other.last_range;
      break;
    case 2:  // the keys of another block
      block.first_range = other.first_range;
      block.last_range = other.last_range;
      block.first_node = other.first_node;
      block.last_node = other.last_node;
      break;
    case 3:  // the queries of another block
      block.begin = other.begin;
      block.end = other.end;
      break;
    case 4: {  // a query less, which the next block may take
      --block.end;
      const auto next = static_cast<std::size_t>(&block - head.blocks.data()) + 1;
      if (next < head.blocks.size() && bytes.Rarely(1)) --head.blocks[next].begin;
      break;
    }
    case 5: {  // a range split in two, or two of a list made one
      if (head.ranges.empty() || block.first_range >= head.ranges.size()) break;
      KeyRange& range = head.ranges[block.first_range];
      const KeyRange rest{range.begin + (range.end - range.begin) / 2, range.end};
      range.end = rest.begin;
      if (bytes.Rarely(1)) {
        head.ranges.push_back(rest);
        block.last_range = static_cast<std::uint32_t>(head.ranges.size());
      }
      break;
    }
    default:  // the whole block once more
      head.blocks.insert(head.blocks.begin() + (&block - head.blocks.data()), other);
      break;
  }
}

inline void DamageHead(Bytes& bytes, HeadPlan& head) {
  switch (bytes.Between(0, 8)) {
    case 7:
    case 8:
      DamageBlocks(bytes, head);
      break;
    case 0:
      DamageIndices(bytes, head.query_order);
      break;
    case 1:
      DamageIndices(bytes, head.key_order);
      break;
    case 2:
      if (DamageList(bytes, head.blocks)) {
        QueryBlock& block = *AnyOf(bytes, head.blocks);
        switch (bytes.Between(0, 5)) {
          case 0:
            DamageNumber(bytes, block.begin);
            break;
          case 1:
            DamageNumber(bytes, block.end);
            break;
          case 2:
            DamageNumber(bytes, block.first_range);
            break;
          case 3:
            DamageNumber(bytes, block.last_range);
            break;
          case 4:
            DamageNumber(bytes, block.first_node);
            break;
          default:
            DamageNumber(bytes, block.last_node);
            break;
        }
      }
      break;
    case 3:
      if (DamageList(bytes, head.ranges)) {
        KeyRange& range = *AnyOf(bytes, head.ranges);
        DamageNumber(bytes, *bytes.Of({&range.begin, &range.end}));
      }
      break;
    case 4:
      DamageIndices(bytes, head.nodes);
      break;
    case 5:
      head.dense = !head.dense;
      break;
    default:
      head.non_finite = !head.non_finite;
      break;
  }
}

inline void DamageSegment(Bytes& bytes, Segment& segment) {
  DamageNumber(
      bytes, *bytes.Of({&segment.first_key, &segment.last_key, &segment.begin, &segment.end,
                        &segment.sinks, &segment.first_node, &segment.last_node, &segment.roots}));
}

inline void DamageTree(Bytes& bytes, KeyForest& tree) {
  switch (bytes.Between(0, 7)) {
    case 0:
      DamageIndices(bytes, tree.key_order);
      break;
    case 1:
      if (DamageList(bytes, tree.segments)) DamageSegment(bytes, *AnyOf(bytes, tree.segments));
      break;
    case 2:
      tree.segments.clear();
      break;
    case 3:
      if (DamageList(bytes, tree.query_basis)) {
        *AnyOf(bytes, tree.query_basis) = static_cast<float>(bytes.Of({testing::kNaN, 3e38, 0.0}));
      }
      break;
    case 4:
      if (DamageList(bytes, tree.key_basis)) {
        *AnyOf(bytes, tree.key_basis) = static_cast<float>(bytes.Of({testing::kNaN, 3e38, 0.0}));
      }
      break;
    case 5:
      if (DamageList(bytes, tree.directions)) {
        *AnyOf(bytes, tree.directions) = static_cast<float>(bytes.Of({testing::kNaN, 3e38, 0.0}));
      }
      break;
    case 6:
      if (DamageList(bytes, tree.profiles)) {
        *AnyOf(bytes, tree.profiles) = static_cast<float>(bytes.Of({testing::kNaN, 3e38, -1.0}));
      }
      break;
    default:
      if (DamageList(bytes, tree.nodes)) {
        Node& node = *AnyOf(bytes, tree.nodes);
        DamageNumber(bytes,
                     *bytes.Of({&node.begin, &node.end, &node.first_child, &node.child_count}));
      }
      break;
  }
}

inline void DamageHeader(Bytes& bytes, PlanParts& plan) {
  switch (bytes.Between(0, 8)) {
    case 0:
      DamageNumber(bytes, *bytes.Of({&plan.batch, &plan.query_heads, &plan.key_heads, &plan.queries,
                                     &plan.keys, &plan.depth}));
      break;
    case 1:
      plan.method = static_cast<Method>(bytes.Between(0, 5));
      break;
    case 2:
      plan.is_causal = !plan.is_causal;
      break;
    case 3:
      plan.has_attn_mask = !plan.has_attn_mask;
      break;
    case 4:
      plan.window = Window{bytes.AnyCount(), bytes.AnyCount()};
      break;
    case 5:
      plan.positions = Positions{bytes.AnyCount(), bytes.AnyCount()};
      break;
    case 6:
      DamageNumber(bytes, *bytes.Of({&plan.n_hashes, &plan.cluster_size}));
      break;
    case 7:
      plan.scale = bytes.AnyDouble();
      break;
    default:
      plan.tolerance = bytes.AnyDouble();
      break;
  }
}

inline void DamagePlan(Bytes& bytes, PlanParts& plan) {
  for (int n = bytes.Of({1, 1, 2, 3}); n > 0; --n) {
    switch (bytes.Between(0, 7)) {
      case 0:
        DamageHeader(bytes, plan);
        break;
      case 1:
        for (auto* lists : {&plan.valid_queries, &plan.valid_keys}) {
          if (DamageList(bytes, *lists)) DamageIndices(bytes, *AnyOf(bytes, *lists));
        }
        break;
      case 2:
      case 3:
      case 4:
        if (DamageList(bytes, plan.forests)) DamageTree(bytes, *AnyOf(bytes, plan.forests));
        break;
      default:
        if (DamageList(bytes, plan.heads)) DamageHead(bytes, *AnyOf(bytes, plan.heads));
        break;
    }
  }
}

}  // namespace smyrf::fuzz
