#include "methods/tree/planner.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <span>
#include <utility>

#include "base/message.h"
#include "base/parallel.h"
#include "base/random.h"
#include "base/sort.h"
#include "base/workspace.h"
#include "methods/tree/balanced_tree.h"

namespace smyrf {
namespace {

using kernels::kCoordinates;
using kernels::kTreeRows;

/// Keys of a leaf: kLeafKeys up to kKeysOfFewest, and from there on with the square root of their
/// number, up to half as many more: fewer nodes to plan and open for nearly the same pairs.
constexpr double kLeafKeys = 8.0;
constexpr double kMostGrowth = 1.5;
constexpr double kKeysOfFewest = 1792.0;
constexpr std::int64_t kSinks = 16;       // by mass, of one query head
constexpr std::int64_t kGroupSinks = 32;  // by mass, of several
constexpr std::int64_t kOutliers = 8;     // sinks by leverage
constexpr std::int64_t kSinkGroups = 2;   // of kTreeRows queries a head, which choose the sinks
constexpr std::uint64_t kSinkStream = 0x73696E6BU;  // of random numbers
constexpr std::int64_t kMomentRows = 1024;          // sampled for the basis
constexpr std::int64_t kTaskRows = 256;
constexpr std::int64_t kFewestKeys = 64;  // with fewer there is nothing to summarise
/// With no more than calibration would compute exactly, dense costs no more.
constexpr std::int64_t kFewestQueries = 128;
/// Where logits may be larger, some may overflow, and what calibration measures is NaN: dense.
constexpr double kGreatestLogit = 1e30;
/// Dense is taken where calibration expects no more of `tree`.
constexpr std::uint32_t kMostPlaces = std::numeric_limits<std::uint32_t>::max();
constexpr double kWorthwhile = 0.9;

std::vector<std::int32_t> ValidPositions(const std::vector<std::vector<std::int32_t>>& valid,
                                         std::int64_t batch, std::int64_t all) {
  if (!valid.empty()) return valid[static_cast<std::size_t>(batch)];
  std::vector<std::int32_t> positions(static_cast<std::size_t>(all));
  std::iota(positions.begin(), positions.end(), 0);
  return positions;
}

std::int64_t LeafKeys(std::int64_t keys) {
  const double growth = std::sqrt(static_cast<double>(keys) / kKeysOfFewest);
  return static_cast<std::int64_t>(kLeafKeys * std::clamp(growth, 1.0, kMostGrowth));
}

/// About `count` of the rows, evenly spread.
std::vector<std::int32_t> Spread(std::span<const std::int32_t> rows, std::int64_t count) {
  const std::int64_t n = std::ssize(rows);
  if (n <= count) return {rows.begin(), rows.end()};
  std::vector<std::int32_t> result;
  result.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    result.push_back(rows[static_cast<std::size_t>((2 * i + 1) * n / (2 * count))]);
  }
  return result;
}

/// A power of two that brings `size` to [1, 2): moments of huge or tiny rows neither overflow nor
/// vanish.
double Normalizer(float size) {
  // From 2^128 on, for subnormal rows, it would not fit float32.
  return size > 0.0F ? std::ldexp(1.0, std::min(126, -std::ilogb(size))) : 1.0;
}

/// (D, D): the sum of x x^T, x = factor * row, less their mean where `centred`.
std::vector<double> Moment(const kernels::Rows& rows, std::int64_t count, std::int64_t depth,
                           double factor, bool centred) {
  const auto d = static_cast<std::size_t>(depth);
  std::vector<float> x(static_cast<std::size_t>(count) * d);
  std::vector<float> gram(d * d);
  kernels::GatherRows(rows, 0, count, depth, x.data());
  const auto scale = static_cast<float>(factor);
  for (float& value : x) value *= scale;
  if (centred) {
    std::vector<double> mean(d);
    for (std::size_t i = 0; i < x.size(); i += d) {
      for (std::size_t c = 0; c < d; ++c) mean[c] += static_cast<double>(x[i + c]);
    }
    for (double& m : mean) m /= static_cast<double>(count);
    const std::vector<float> centre(mean.begin(), mean.end());
    for (std::size_t i = 0; i < x.size(); i += d) {
      for (std::size_t c = 0; c < d; ++c) x[i + c] -= centre[c];
    }
  }
  kernels::Gram(x.data(), count, depth, gram.data());
  return {gram.begin(), gram.end()};
}

/// (positions, kCoordinates): the rows at these positions in `basis`.
kernels::Floats CoordinatesOf(const TensorView& view, std::int64_t batch, std::int64_t head,
                              const std::vector<std::int32_t>& positions,
                              const std::vector<float>& basis, const Run& run) {
  const std::int64_t n = std::ssize(positions);
  kernels::Floats coordinates(n * kCoordinates);
  const auto rows = kernels::RowsOf(view, batch, head, positions);
  ParallelFor((n + kTaskRows - 1) / kTaskRows, run, [&](std::int64_t task) {
    const std::int64_t begin = task * kTaskRows;
    kernels::Coordinates(rows, begin, std::min(kTaskRows, n - begin), view.shape[3], basis.data(),
                         coordinates.get() + begin * kCoordinates);
  });
  return coordinates;
}

/// positions[order[i]] for every i.
std::vector<std::int32_t> PositionsOf(const std::vector<std::int32_t>& order,
                                      const std::vector<std::int32_t>& positions) {
  std::vector<std::int32_t> result;
  result.reserve(order.size());
  for (const std::int32_t row : order) result.push_back(positions[static_cast<std::size_t>(row)]);
  return result;
}

/// Of the nodes of the only segment over rows `order` of the coordinates, which follow the sinks.
std::vector<float> Directions(const KeyForest& tree, const kernels::Floats& coordinates,
                              std::span<const std::int32_t> order, const Run& run) {
  const auto count = std::ssize(tree.nodes);
  std::vector<float> directions(static_cast<std::size_t>(count * kCoordinates));
  ParallelFor((count + kTaskNodes - 1) / kTaskNodes, run, [&](std::int64_t task) {
    const std::int64_t begin = task * kTaskNodes;
    for (std::int64_t id = begin; id < std::min(count, begin + kTaskNodes); ++id) {
      const Node& node = tree.nodes[static_cast<std::size_t>(id)];
      kernels::LeadingDirection(
          coordinates.get(),
          order.subspan(static_cast<std::size_t>(node.begin - tree.segments[0].sinks),
                        static_cast<std::size_t>(node.end - node.begin)),
          directions.data() + id * kCoordinates);
    }
  });
  return directions;
}

/// Of `count` rows: squared distances from their mean, each coordinate in its own deviations.
std::vector<float> Leverages(const kernels::Floats& coordinates, std::int64_t count,
                             const Run& run) {
  constexpr auto kWide = static_cast<std::size_t>(kCoordinates);
  struct Sums {
    std::array<double, kWide> sum{}, squares{};
  };
  const auto row = [&](std::int64_t i) { return coordinates.get() + i * kCoordinates; };
  const std::int64_t tasks = (count + kTaskRows - 1) / kTaskRows;
  std::vector<Sums> parts(static_cast<std::size_t>(tasks));
  ParallelFor(tasks, run, [&](std::int64_t task) {
    Sums& part = parts[static_cast<std::size_t>(task)];
    for (std::int64_t i = task * kTaskRows; i < std::min(count, (task + 1) * kTaskRows); ++i) {
      for (std::size_t c = 0; c < kWide; ++c) {
        const double x = static_cast<double>(row(i)[c]);
        part.sum[c] += x;
        part.squares[c] += x * x;
      }
    }
  });
  Sums all;
  for (const Sums& part : parts) {
    for (std::size_t c = 0; c < kWide; ++c) {
      all.sum[c] += part.sum[c];
      all.squares[c] += part.squares[c];
    }
  }
  std::array<float, kWide> mean{};
  std::array<float, kWide> weight{};
  for (std::size_t c = 0; c < kWide; ++c) {
    const double centre = all.sum[c] / static_cast<double>(count);
    const double square = all.squares[c] / static_cast<double>(count);
    const double variance = square - centre * centre;
    mean[c] = static_cast<float>(centre);
    // Coordinates past D, or of equal keys, tell nothing.
    weight[c] = variance > 1e-6 * square ? static_cast<float>(1.0 / variance) : 0.0F;
  }
  std::vector<float> leverages(static_cast<std::size_t>(count));
  ParallelFor(tasks, run, [&](std::int64_t task) {
    for (std::int64_t i = task * kTaskRows; i < std::min(count, (task + 1) * kTaskRows); ++i) {
      float leverage = 0.0F;
      for (std::size_t c = 0; c < kWide; ++c) {
        const float x = row(i)[c] - mean[c];
        leverage += weight[c] * x * x;
      }
      leverages[static_cast<std::size_t>(i)] = leverage;
    }
  });
  return leverages;
}

}  // namespace

TreePlanner::TreePlanner(const Problem& problem, const PlanInfo& plan, std::int64_t batch,
                         std::int64_t key_head, const Run& run)
    : problem_(problem),
      plan_(plan),
      batch_(batch),
      key_head_(key_head),
      head_count_(problem.query_heads / problem.key_heads),
      run_(run),
      queries_(ValidPositions(problem.valid_queries, batch, problem.queries)) {
  first_head_ = key_head * head_count_;
  const std::vector<std::int32_t> keys = ValidPositions(problem.valid_keys, batch, problem.keys);
  sizes_.assign(static_cast<std::size_t>(head_count_) + 1, 0.0F);
  if (queries_.empty() || keys.empty()) return;
  tree_.key_order = keys;
  FindCommonBasis();
  if (!std::isfinite(sizes_.back()) || plan.tolerance == 0.0) return;
  if (std::ssize(keys) < std::max(kFewestKeys, plan.dense_below)) return;
  if (std::ssize(queries_) < plan.dense_below) return;
  if (std::ssize(queries_) <= kFewestQueries && !plan.max_density) return;

  const kernels::Floats coordinates =
      CoordinatesOf(problem.key, batch, key_head, keys, basis_.key, run);
  std::vector<std::int32_t> others = ChooseSinks(keys, coordinates);
  const auto n = std::ssize(others);
  const std::int64_t leaf = LeafKeys(n);
  const std::int64_t leaves = (n + leaf - 1) / leaf;
  BalanceOrder(coordinates.get(), others, leaves, run);
  AddNodes(leaves, tree_.segments[0], tree_.nodes);
  tree_.directions = Directions(tree_, coordinates, others, run);
  others = PositionsOf(others, keys);
  tree_.key_order.insert(tree_.key_order.end(), others.begin(), others.end());
  tree_.query_basis = basis_.query;
  tree_.key_basis = basis_.key;
  summaries_ = std::make_unique<Summaries>(problem, batch, key_head, tree_, run, &tree_.profiles);
  if (!summaries_->finite()) {
    summaries_.reset();
    tree_ = {};
    tree_.key_order = keys;
    return;
  }
  ranks_.assign(static_cast<std::size_t>(problem.keys), -1);
  for (std::size_t i = 0; i < tree_.key_order.size(); ++i) {
    ranks_[static_cast<std::size_t>(tree_.key_order[i])] = static_cast<std::int32_t>(i);
  }
  sketch_ = std::make_unique<ValueSketch>(summaries_->view(), plan.seed, run);
}

kernels::NodesView TreePlanner::nodes() const {
  kernels::NodesView view = summaries_->view();
  view.ranks = ranks_;
  view.own_offset = problem_.mask.own_offset;
  return view;
}

void TreePlanner::FindCommonBasis() {
  const auto d = static_cast<std::size_t>(problem_.depth);
  const auto query_rows = [&](std::int64_t head, const std::vector<std::int32_t>& positions) {
    return kernels::RowsOf(problem_.query, batch_, first_head_ + head, positions);
  };
  const auto key_rows = [&](const std::vector<std::int32_t>& positions) {
    return kernels::RowsOf(problem_.key, batch_, key_head_, positions);
  };
  ParallelFor(head_count_ + 1, run_, [&](std::int64_t i) {
    const bool of_keys = i == head_count_;
    const std::vector<std::int32_t>& positions = of_keys ? tree_.key_order : queries_;
    sizes_[static_cast<std::size_t>(i)] =
        kernels::MaxAbs(of_keys ? key_rows(positions) : query_rows(i, positions), 0,
                        std::ssize(positions), problem_.depth);
  });
  const float key_size = sizes_.back();
  if (!std::isfinite(key_size)) return;
  float query_size = 0.0F;
  double finite = 0.0;
  for (std::int64_t i = 0; i < head_count_; ++i) {
    if (!IsFinite(i)) continue;
    query_size = std::max(query_size, sizes_[static_cast<std::size_t>(i)]);
    finite += 1.0;
  }
  const double query_factor = Normalizer(query_size);
  const double key_factor = Normalizer(key_size);

  const std::vector<std::int32_t> some_keys = Spread(tree_.key_order, kMomentRows);
  const std::vector<std::int32_t> some_queries =
      Spread(queries_, std::max<std::int64_t>(64, kMomentRows / head_count_));
  std::vector<std::vector<double>> moments(sizes_.size());
  ParallelFor(head_count_ + 1, run_, [&](std::int64_t i) {
    std::vector<double>& moment = moments[static_cast<std::size_t>(i)];
    if (i == head_count_) {
      moment = Moment(key_rows(some_keys), std::ssize(some_keys), problem_.depth, key_factor, true);
    } else if (IsFinite(i)) {
      moment = Moment(query_rows(i, some_queries), std::ssize(some_queries), problem_.depth,
                      query_factor, false);
    }
  });
  std::vector<double> covariance = std::move(moments.back());
  for (double& x : covariance) x /= static_cast<double>(some_keys.size());
  std::vector<double> moment(d * d);
  for (std::size_t i = 0; i + 1 < moments.size(); ++i) {
    for (std::size_t c = 0; c < moments[i].size(); ++c) moment[c] += moments[i][c];
  }
  const double count = finite * static_cast<double>(some_queries.size());
  for (double& x : moment) x /= std::max(count, 1.0);
  basis_ = FindBasis(moment, covariance, problem_.depth, query_factor, key_factor);
}

/// Sinks: the keys that hold the largest part of the sampled queries' mass, and of the others those
/// of the largest leverage, which lie where few keys do: no node's variance tells of them, and the
/// few queries that look there may see nothing else. Gives the ranks of the rest.
std::vector<std::int32_t> TreePlanner::ChooseSinks(const std::vector<std::int32_t>& keys,
                                                   const kernels::Floats& coordinates) {
  const auto n = std::ssize(keys);
  const auto rows = kernels::RowsOf(problem_.key, batch_, key_head_, keys);
  std::vector<std::vector<float>> parts(static_cast<std::size_t>(head_count_ * kSinkGroups));
  ParallelFor(std::ssize(parts), run_, [&](std::int64_t i) {
    const std::int64_t head = i / kSinkGroups;
    if (!IsFinite(head)) return;
    // One query of each of the equal stretches of positions.
    std::vector<std::int32_t> some;
    const std::int64_t stretches = std::min(kSinkGroups * kTreeRows, std::ssize(queries_));
    for (std::int64_t s = i % kSinkGroups; s < stretches; s += kSinkGroups) {
      const std::int64_t low = s * std::ssize(queries_) / stretches;
      const std::int64_t high = (s + 1) * std::ssize(queries_) / stretches;
      some.push_back(queries_[static_cast<std::size_t>(
          RandomBetween(low, high, plan_.seed, kSinkStream, static_cast<std::uint64_t>(s)))]);
    }
    std::vector<float>& shares = parts[static_cast<std::size_t>(i)];
    shares.assign(static_cast<std::size_t>(n), 0.0F);
    if (some.empty()) return;
    const auto lanes = kernels::LoadLanes(
        kernels::RowsOf(problem_.query, batch_, first_head_ + head, some), 0, std::ssize(some),
        problem_.depth, problem_.scale, basis_.query.data(), {});
    kernels::AddShares(rows, n, problem_.depth, lanes, shares.data());
  });
  std::vector<float> shares(static_cast<std::size_t>(n));
  for (const std::vector<float>& part : parts) {
    for (std::size_t j = 0; j < part.size(); ++j) shares[j] += part[j];
  }
  std::vector<std::int32_t> ranks(static_cast<std::size_t>(n));
  std::iota(ranks.begin(), ranks.end(), 0);
  const std::int64_t by_mass = head_count_ > 1 ? kGroupSinks : kSinks;
  SelectLargest(ranks, by_mass, shares);
  SelectLargest(std::span(ranks).subspan(static_cast<std::size_t>(by_mass)), kOutliers,
                Leverages(coordinates, n, run_));
  const auto sinks = static_cast<std::int32_t>(by_mass + kOutliers);
  Segment segment;
  segment.last_key = static_cast<std::int32_t>(problem_.keys);
  segment.end = static_cast<std::int32_t>(n);
  segment.sinks = sinks;
  tree_.segments = {segment};
  std::sort(ranks.begin(), ranks.begin() + sinks);
  std::sort(ranks.begin() + sinks, ranks.end());
  tree_.key_order.clear();
  for (std::int32_t i = 0; i < sinks; ++i) {
    const std::int32_t rank = ranks[static_cast<std::size_t>(i)];
    tree_.key_order.push_back(keys[static_cast<std::size_t>(rank)]);
  }
  ranks.erase(ranks.begin(), ranks.begin() + sinks);
  return ranks;
}

kernels::QueryLanes BlockLanes(const Problem& problem, std::int64_t batch, std::int64_t query_head,
                               const HeadView& head, const QueryBlock& block,
                               const KeyForestView& tree) {
  return kernels::LoadLanes(kernels::RowsOf(problem.query, batch, query_head, head.query_order),
                            block.begin, block.end, problem.depth, problem.scale,
                            tree.query_basis.data(), tree.profiles);
}

double TreePlanner::LargestLogit(std::int64_t head) const {
  return static_cast<double>(sizes_[static_cast<std::size_t>(head)]) *
         static_cast<double>(sizes_.back()) * static_cast<double>(problem_.depth) *
         std::abs(problem_.scale);
}

TreePlanner::Head TreePlanner::PlanHead(std::int64_t query_head) const {
  Head head;
  if (queries_.empty() || tree_.key_order.empty()) return head;
  if (!IsFinite(head_count_) || !IsFinite(query_head - first_head_)) {
    head.plan.non_finite = true;
    return head;
  }
  head.plan.dense = true;
  if (summaries_ == nullptr || !(LargestLogit(query_head - first_head_) < kGreatestLogit)) {
    return head;
  }

  const auto n = std::ssize(queries_);
  const std::int64_t blocks = (n + kTreeRows - 1) / kTreeRows;
  std::vector<std::int32_t> order(queries_.size());
  std::iota(order.begin(), order.end(), 0);
  BalanceOrder(
      CoordinatesOf(problem_.query, batch_, query_head, queries_, basis_.query_tree, run_).get(),
      order, blocks, run_);
  order = PositionsOf(order, queries_);

  CalibrationTask task;
  task.queries = kernels::RowsOf(problem_.query, batch_, query_head, order);
  task.bounds = LeafBounds(0, n, blocks);
  task.scale = problem_.scale;
  task.basis = tree_.query_basis.data();
  task.profiles = tree_.profiles;
  task.tolerance = plan_.tolerance;
  task.max_density = plan_.max_density;
  task.seed = plan_.seed;
  task.run = run_;
  const std::optional<Calibration> found = Calibrate(nodes(), *sketch_, task);
  if (!found || (found->work >= kWorthwhile && !plan_.max_density)) return head;
  head.plan.dense = false;
  head.plan.query_order = std::move(order);
  for (std::size_t i = 0; i + 1 < task.bounds.size(); ++i) {
    head.plan.blocks.push_back({task.bounds[i], task.bounds[i + 1], 0, 0, 0, 0});
  }
  head.plan.expected_error = found->error;
  head.plan.expected_lse_error = found->lse_error;
  head.plan.expected_work = found->work;
  head.calibration = *found;
  return head;
}

void ForEachGroup(const Problem& problem, const std::function<void(const HeadGroup&)>& body) {
  if (problem.query_heads == 0) return;  // whatever the number of key heads
  ParallelOuter(
      problem.batch * problem.key_heads, problem.run, [&](std::int64_t i, const Run& run) {
        const std::int64_t heads = problem.query_heads / problem.key_heads;
        const std::int64_t key_head = i % problem.key_heads;
        body({i / problem.key_heads, key_head, key_head * heads, (key_head + 1) * heads, run});
      });
}

void MakeRoomForTrees(const Problem& problem, PlanParts& plan) {
  plan.forests.assign(static_cast<std::size_t>(problem.batch * problem.key_heads), {});
  plan.heads.assign(static_cast<std::size_t>(problem.batch * problem.query_heads), {});
}

bool AlwaysFits(std::int64_t queries, std::int64_t keys) {
  const std::int64_t blocks = (queries + kTreeRows - 1) / kTreeRows;
  return keys == 0 || blocks <= kMostPlaces / keys;  // each run of a block holds a key
}

std::uint32_t PlanOffset(std::size_t place) {
  if (place > kMostPlaces) {
    Fail(ErrorKind::kUnsupported, "plan: a query head evaluates ", place,
         " runs of keys or summaries, a plan can hold ", kMostPlaces,
         "; call attention without keeping its plan, or with fewer queries at once");
  }
  return static_cast<std::uint32_t>(place);
}

void StoreOpenings(std::span<const Opening> openings, HeadPlan& head) {
  std::size_t ranges = 0;
  std::size_t nodes = 0;
  for (const Opening& opening : openings) {
    ranges += opening.ranges.size();
    nodes += opening.closed.size();
  }
  head.ranges.reserve(ranges);
  head.nodes.reserve(nodes);
  for (std::size_t block = 0; block < openings.size(); ++block) {
    const Opening& opening = openings[block];
    QueryBlock& to = head.blocks[block];
    to.first_range = PlanOffset(head.ranges.size());
    to.first_node = PlanOffset(head.nodes.size());
    head.ranges.insert(head.ranges.end(), opening.ranges.begin(), opening.ranges.end());
    head.nodes.insert(head.nodes.end(), opening.closed.begin(), opening.closed.end());
    to.last_range = PlanOffset(head.ranges.size());
    to.last_node = PlanOffset(head.nodes.size());
  }
}

void PlanTree(const Problem& problem, PlanParts& plan) {
  MakeRoomForTrees(problem, plan);
  ForEachGroup(problem, [&](const HeadGroup& group) {
    TreePlanner planner(problem, plan, group.batch, group.key_head, group.run);
    for (std::int64_t h = group.first_head; h < group.last_head; ++h) {
      TreePlanner::Head head = planner.PlanHead(h);
      std::vector<Opening> openings(head.plan.blocks.size());
      ParallelFor(std::ssize(openings), group.run, [&](std::int64_t block) {
        const auto at = static_cast<std::size_t>(block);
        OpenBlock(
            planner.nodes(),
            BlockLanes(problem, group.batch, h, head.plan, head.plan.blocks[at], planner.forest()),
            head.calibration.threshold, head.calibration.scoring, openings[at]);
        openings[at].closed_logits = {};
      });
      StoreOpenings(openings, head.plan);
      plan.heads[static_cast<std::size_t>(group.batch * problem.query_heads + h)] =
          std::move(head.plan);
    }
    plan.forests[static_cast<std::size_t>(group.batch * problem.key_heads + group.key_head)] =
        planner.TakeForest();
  });
}

}  // namespace smyrf
