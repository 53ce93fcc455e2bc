// Plans while they are made, and what they become: flat arrays behind smyrf::Plan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "run/problem.h"
#include "smyrf/plan.h"

namespace smyrf {

/// HeadView's lists, to be filled in.
struct HeadPlan {
  std::vector<std::int32_t> query_order;
  std::vector<std::int32_t> key_order;
  std::vector<QueryBlock> blocks;
  std::vector<KeyRange> ranges;
  std::vector<std::int32_t> nodes;
  bool dense = false;
  bool non_finite = false;
  double expected_error = 0.0;
  double expected_lse_error = 0.0;
  double expected_work = 1.0;

  operator HeadView() const {  // NOLINT(google-explicit-constructor): as a vector is a span
    return {query_order,    key_order,          blocks,       ranges, nodes, dense, non_finite,
            expected_error, expected_lse_error, expected_work};
  }
};

/// KeyForestView's lists, to be filled in.
struct KeyForest {
  std::vector<std::int32_t> key_order;
  std::vector<Segment> segments;
  std::vector<Node> nodes;
  std::vector<float> query_basis;
  std::vector<float> key_basis;
  std::vector<float> directions;
  std::vector<float> profiles;

  operator KeyForestView() const {  // NOLINT(google-explicit-constructor): as a vector is a span
    return {key_order, segments, nodes, query_basis, key_basis, directions, profiles};
  }
};

/// A plan of which each part is made by itself.
struct PlanParts : PlanInfo {
  ValidLists valid_queries, valid_keys;
  std::vector<KeyForest> forests;  ///< (batch, key head), or none
  std::vector<HeadPlan> heads;     ///< (round, batch, query head), or none

  std::size_t HeadIndex(std::int64_t round, std::int64_t b, std::int64_t h) const {
    return static_cast<std::size_t>((round * batch + b) * query_heads + h);
  }
  const HeadPlan& head(std::int64_t round, std::int64_t b, std::int64_t h) const {
    return heads[HeadIndex(round, b, h)];
  }
  const KeyForest& forest(std::int64_t b, std::int64_t g) const {
    return forests[static_cast<std::size_t>(b * key_heads + g)];
  }
};

/// Where the lists of one head end in the arrays of all; they begin where those before them end.
/// Only 8-byte numbers, so that a record's bytes are its value.
struct HeadRecord {
  std::uint64_t query_order = 0, key_order = 0, blocks = 0, ranges = 0, nodes = 0;
  std::uint64_t dense = 0, non_finite = 0;
  double expected_error = 0.0, expected_lse_error = 0.0, expected_work = 1.0;
};

struct ForestRecord {
  std::uint64_t key_order = 0, segments = 0, nodes = 0;
  std::uint64_t query_basis = 0, key_basis = 0, directions = 0, profiles = 0;
};

/// The rows of all lists one after the other, and where each ends.
struct FlatLists {
  std::vector<std::int32_t> rows;
  std::vector<std::uint64_t> ends;
};

/// What a Plan holds.
struct PlanData {
  PlanInfo info;
  FlatLists valid_queries, valid_keys;
  std::vector<HeadRecord> heads;
  std::vector<std::int32_t> query_orders, key_orders;
  std::vector<QueryBlock> blocks;
  std::vector<KeyRange> ranges;
  std::vector<std::int32_t> nodes;
  std::vector<ForestRecord> forests;
  std::vector<std::int32_t> forest_orders;
  std::vector<Segment> segments;
  std::vector<Node> forest_nodes;
  std::vector<float> query_bases, key_bases, directions, profiles;

  HeadView Head(std::size_t index) const;
  KeyForestView Forest(std::size_t index) const;
};

struct PlanAccess {
  static const PlanData& Data(const Plan& plan);
  static Plan Make(PlanData data);
};

/// Original indices of the valid rows of one batch entry, ascending; none: all are valid.
using ValidRows = std::optional<std::span<const std::int32_t>>;
ValidRows ListOf(const FlatLists& lists, std::int64_t index);
ValidRows ListOf(const ValidLists& lists, std::int64_t index);
ValidLists Unflatten(const FlatLists& lists);

/// The parts' memory is given back as they are copied.
Plan Pack(PlanParts&& parts);
PlanParts Unpack(const Plan& plan);

/// What executors read of a plan, whether it is kept or still in parts.
class PlanView {
 public:
  PlanView(const PlanParts& parts) : info_(parts), parts_(&parts) {}                  // NOLINT
  PlanView(const Plan& plan) : info_(plan.info()), data_(&PlanAccess::Data(plan)) {}  // NOLINT

  const PlanInfo& info() const { return info_; }
  std::size_t head_count() const { return parts_ ? parts_->heads.size() : data_->heads.size(); }
  std::size_t forest_count() const {
    return parts_ ? parts_->forests.size() : data_->forests.size();
  }
  HeadView head(std::int64_t round, std::int64_t b, std::int64_t h) const {
    const auto at = static_cast<std::size_t>((round * info_.batch + b) * info_.query_heads + h);
    return parts_ != nullptr ? HeadView(parts_->heads[at]) : data_->Head(at);
  }
  KeyForestView forest(std::int64_t b, std::int64_t g) const {
    const auto at = static_cast<std::size_t>(b * info_.key_heads + g);
    return parts_ != nullptr ? KeyForestView(parts_->forests[at]) : data_->Forest(at);
  }
  std::size_t valid_query_lists() const {
    return parts_ ? parts_->valid_queries.size() : data_->valid_queries.ends.size();
  }
  std::size_t valid_key_lists() const {
    return parts_ ? parts_->valid_keys.size() : data_->valid_keys.ends.size();
  }
  /// Of a batch entry; none: all rows are valid.
  ValidRows valid_queries(std::int64_t b) const {
    return parts_ ? ListOf(parts_->valid_queries, b) : ListOf(data_->valid_queries, b);
  }
  ValidRows valid_keys(std::int64_t b) const {
    return parts_ ? ListOf(parts_->valid_keys, b) : ListOf(data_->valid_keys, b);
  }

 private:
  const PlanInfo& info_;
  const PlanParts* parts_ = nullptr;
  const PlanData* data_ = nullptr;
};

}  // namespace smyrf
