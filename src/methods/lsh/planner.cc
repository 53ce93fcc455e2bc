#include "methods/lsh/planner.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "base/parallel.h"
#include "base/random.h"
#include "base/sort.h"
#include "simd/kernels.h"

namespace smyrf {
namespace {

using kernels::kBlockRows;

/// Gaussian directions of D + 2 dimensions, one a round, for [x; second; last].
struct Directions {
  std::vector<float> rows;  ///< (rounds, D)
  std::vector<float> key_slack, query_slack;

  Directions(const PlanParts& plan, std::int64_t first_round) {
    for (std::int64_t round = first_round; round < first_round + plan.n_hashes; ++round) {
      NormalStream normal(plan.seed, static_cast<std::uint64_t>(round));
      for (std::int64_t i = 0; i < plan.depth; ++i) {
        rows.push_back(static_cast<float>(normal.Next()));
      }
      key_slack.push_back(static_cast<float>(normal.Next()));
      query_slack.push_back(static_cast<float>(normal.Next()));
    }
  }
};

/// The valid rows of all heads of one batch entry, hashed but for the slack coordinate.
struct Hashed {
  const TensorView& view;
  std::int64_t batch_index;
  std::span<const std::int32_t> valid;  ///< empty: all rows
  std::int64_t heads, rows, rounds;
  std::vector<float> products;  ///< (heads, rounds, rows)
  std::vector<float> norms;     ///< (heads, rows): squared
  std::vector<float> largest;   ///< (heads): largest absolute element, NaN if not finite
  std::vector<int> exponents;   ///< (heads): products and norms are of the rows times 2^exponent

  Hashed(const TensorView& tensor, std::int64_t b,
         const std::vector<std::vector<std::int32_t>>& valid_rows, std::int64_t rounds_)
      : view(tensor),
        batch_index(b),
        heads(tensor.shape[1]),
        rows(tensor.shape[2]),
        rounds(rounds_) {
    if (!valid_rows.empty()) {
      valid = valid_rows[static_cast<std::size_t>(b)];
      rows = static_cast<std::int64_t>(valid.size());
    }
    products.resize(static_cast<std::size_t>(heads * rounds * rows));
    norms.resize(static_cast<std::size_t>(heads * rows));
    largest.resize(static_cast<std::size_t>(heads));
    exponents.resize(static_cast<std::size_t>(heads));
  }

  kernels::Rows Head(std::int64_t head) const {
    return kernels::RowsOf(view, batch_index, head, valid);
  }
  std::int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
  float Norm(std::int64_t head, std::int64_t row) const {
    return norms[static_cast<std::size_t>(head * rows + row)];
  }
  float LargestNorm(std::int64_t head) const {
    const auto begin = norms.begin() + head * rows;
    return rows > 0 ? *std::max_element(begin, begin + rows) : 0.0F;
  }

  /// A power of two brings a head's largest element to [1, 2): hashing is homogeneous, so the order
  /// stays, and no square overflows or vanishes.
  void Measure(std::int64_t head) {
    const float size = kernels::MaxAbs(Head(head), 0, rows, view.shape[3]);
    largest[static_cast<std::size_t>(head)] = size;
    exponents[static_cast<std::size_t>(head)] =
        std::isfinite(size) ? -std::clamp(std::ilogb(size), -126, 126) : 0;
  }

  void Project(std::int64_t head, std::int64_t block, const Directions& directions) {
    kernels::ProjectTask task;
    task.rows = Head(head);
    task.begin = block * kBlockRows;
    task.end = std::min(rows, task.begin + kBlockRows);
    task.depth = view.shape[3];
    task.factor = std::ldexp(1.0F, exponents[static_cast<std::size_t>(head)]);
    task.directions = directions.rows.data();
    task.direction_count = rounds;
    task.norms = norms.data() + head * rows;
    task.products = products.data() + head * rounds * rows;
    task.product_stride = rows;
    kernels::ProjectRows(task);
  }

  /// Original positions of the rows in order of their hash: product + weight * sqrt(bound - norm),
  /// the slack coordinate that gives every row the same length. Rows count times `ratio`.
  std::vector<std::int32_t> Order(std::int64_t head, std::int64_t round, float ratio, float bound,
                                  float weight) const {
    std::vector<float> hash(static_cast<std::size_t>(rows));
    const float* product = products.data() + (head * rounds + round) * rows;
    for (std::int64_t i = 0; i < rows; ++i) {
      hash[static_cast<std::size_t>(i)] =
          ratio * product[i] +
          weight * std::sqrt(std::max(0.0F, bound - ratio * ratio * Norm(head, i)));
    }
    std::vector<std::int32_t> order = SortedOrder(hash);
    if (!valid.empty()) {
      for (std::int32_t& row : order) row = valid[static_cast<std::size_t>(row)];
    }
    return order;
  }

  std::vector<std::int32_t> Positions() const {
    if (!valid.empty()) return {valid.begin(), valid.end()};
    std::vector<std::int32_t> positions(static_cast<std::size_t>(rows));
    std::iota(positions.begin(), positions.end(), 0);
    return positions;
  }
};

/// Equal ranks paired: cluster c holds rows [c n / C, (c + 1) n / C) of each order.
void PairClusters(std::int64_t clusters, HeadPlan& head) {
  const auto queries = static_cast<std::int64_t>(head.query_order.size());
  const auto keys = static_cast<std::int64_t>(head.key_order.size());
  const auto cut = [clusters](std::int64_t c, std::int64_t n) {
    return static_cast<std::int32_t>(c * n / clusters);
  };
  head.blocks.reserve(static_cast<std::size_t>(clusters));
  head.ranges.reserve(static_cast<std::size_t>(clusters));
  for (std::int64_t c = 0; c < clusters; ++c) {
    const auto range = static_cast<std::uint32_t>(c);
    head.blocks.push_back({cut(c, queries), cut(c + 1, queries), range, range + 1});
    head.ranges.push_back({cut(c, keys), cut(c + 1, keys)});
  }
}

/// The plans of the rounds from `first_round` on and of all query heads of batch entry b.
void PlanBatchEntry(const Problem& problem, const Directions& directions, std::int64_t first_round,
                    std::int64_t b, const Run& run, PlanParts& plan) {
  Hashed queries(problem.query, b, plan.valid_queries, plan.n_hashes);
  Hashed keys(problem.key, b, plan.valid_keys, plan.n_hashes);
  const auto head_plan = [&](std::int64_t round, std::int64_t h) -> HeadPlan& {
    return plan.heads[plan.HeadIndex(round, b, h)];
  };
  if (queries.rows == 0 || keys.rows == 0) return;  // no block: outputs are 0 or not valid

  ParallelFor(queries.heads + keys.heads, run, [&](std::int64_t i) {
    i < queries.heads ? queries.Measure(i) : keys.Measure(i - queries.heads);
  });
  ParallelFor(queries.heads * queries.blocks() + keys.heads * keys.blocks(), run,
              [&](std::int64_t i) {
                const bool is_query = i < queries.heads * queries.blocks();
                Hashed& side = is_query ? queries : keys;
                const std::int64_t j = is_query ? i : i - queries.heads * queries.blocks();
                side.Project(j / side.blocks(), j % side.blocks(), directions);
              });

  const double wanted =
      std::round(static_cast<double>(keys.rows) / static_cast<double>(plan.cluster_size));
  const std::int64_t clusters = std::clamp<std::int64_t>(static_cast<std::int64_t>(wanted), 1,
                                                         std::min(queries.rows, keys.rows));
  ParallelFor(plan.query_heads * plan.n_hashes, run, [&](std::int64_t i) {
    const std::int64_t h = i / plan.n_hashes;
    const std::int64_t round = i % plan.n_hashes;
    const std::int64_t g = problem.KeyHead(h);
    HeadPlan& head = head_plan(round, h);
    head.dense = clusters == 1;
    head.non_finite = !std::isfinite(queries.largest[static_cast<std::size_t>(h)]) ||
                      !std::isfinite(keys.largest[static_cast<std::size_t>(g)]);
    if (head.non_finite || (head.dense && first_round + round > 0)) return;
    if (head.dense) {
      head.query_order = queries.Positions();
      head.key_order = keys.Positions();
    } else {
      // The larger side keeps its scale, the other one joins it.
      const int query_exponent = queries.exponents[static_cast<std::size_t>(h)];
      const int key_exponent = keys.exponents[static_cast<std::size_t>(g)];
      const int exponent = std::min(query_exponent, key_exponent);
      const float query_ratio = std::ldexp(1.0F, exponent - query_exponent);
      const float key_ratio = std::ldexp(1.0F, exponent - key_exponent);
      const float bound = query_ratio * query_ratio * queries.LargestNorm(h) +
                          key_ratio * key_ratio * keys.LargestNorm(g);
      const auto r = static_cast<std::size_t>(round);
      head.query_order = queries.Order(h, round, query_ratio, bound, directions.query_slack[r]);
      head.key_order = keys.Order(g, round, key_ratio, bound, directions.key_slack[r]);
    }
    PairClusters(clusters, head);
  });
}

}  // namespace

void PlanLsh(const Problem& problem, std::int64_t first_round, std::int64_t rounds,
             PlanParts& plan) {
  plan.n_hashes = rounds;
  plan.heads.assign(static_cast<std::size_t>(rounds * plan.batch * plan.query_heads), {});
  const Directions directions(plan, first_round);
  // Threads share the batch where it is large enough, else the heads and rounds of one entry.
  ParallelOuter(problem.batch, problem.run, [&](std::int64_t b, const Run& run) {
    PlanBatchEntry(problem, directions, first_round, b, run, plan);
  });
}

std::int64_t RoundsAtOnce(const Problem& problem, std::int64_t cluster_size) {
  constexpr std::int64_t kBytes = std::int64_t{32} << 20;
  constexpr std::int64_t kFewest = 6;  // directions that one pass over the rows is good for
  const std::int64_t rows =
      problem.query_heads * problem.queries + problem.key_heads * problem.keys;
  const std::int64_t clusters = std::clamp<std::int64_t>(
      problem.keys / cluster_size, 1, std::max<std::int64_t>(1, problem.queries));
  const auto structure =
      static_cast<std::int64_t>(sizeof(HeadPlan) + static_cast<std::size_t>(clusters) *
                                                       (sizeof(QueryBlock) + sizeof(KeyRange)));
  const std::int64_t plans =
      problem.batch * problem.query_heads * (structure + 4 * (problem.queries + problem.keys));
  return std::max(kFewest, kBytes / std::max<std::int64_t>(1, plans + 4 * (rows + problem.depth)));
}

}  // namespace smyrf
