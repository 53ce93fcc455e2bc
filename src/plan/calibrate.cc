#include "plan/calibrate.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan/measure.h"

namespace smyrf {
namespace {

/// Thresholds that are tried at once, of a geometric grid. First a coarse grid on one group of
/// blocks: from kLargest times the tolerance times the values' RMS down. (The errors that n equal
/// summaries leave add up to sqrt(n) times one, so the useful thresholds lie within sqrt(number of
/// nodes) and the ratio of the output's size to the values'.) Then a fine grid around what it finds
/// on all groups, moved until the answer lies inside.
constexpr int kCoarse = 12;
constexpr double kCoarseRatio = 2.2;
constexpr double kLargest = 2.0;
constexpr int kFine = 10;
constexpr double kFineRatio = 1.5;
constexpr int kFineAbove = 6;  // of the fine grid, above what the coarse one found
constexpr int kMoves = 4;
static_assert(std::max(kCoarse, kFine) <= static_cast<int>(kMostThresholds));

/// Estimates are upper bounds: a mean square and so many of its standard errors, which heavy tails
/// widen, times a factor. With 128 sampled rows and neither, one head in ten errs by a quarter more
/// than asked for. lse has the heavier tails: a key that one query sees and others don't.
constexpr double kOutErrors = 4.0;
constexpr double kLseErrors = 8.0;
constexpr double kSafety = 1.05;

/// Time over dense attention's of one block, with its planning, from counts a block: multiply-adds
/// of rows that are exact, nodes that are visited and summaries that are kept, each with its
/// exponential, at the rate that blocks of 16 run at compared with dense blocks of 64.
double Work(const kernels::NodesView& nodes, double exact, double visited, double closed) {
  constexpr double kExp = 16.0;
  constexpr double kSlower = 1.5;
  const auto d = static_cast<double>(nodes.depth);
  const auto dv = static_cast<double>(nodes.value_depth);
  const double pair = d + dv + kExp;
  const double node = d + static_cast<double>(kernels::kCoordinates) + 2.0 * kExp;
  return kSlower * (exact * pair + visited * node + closed * (dv + kExp)) /
         (static_cast<double>(nodes.key_count) * pair);
}

/// Mean square of the values and of their deviation from their mean, from at most 1024 rows.
struct ValueSize {
  double square = 0.0, variance = 0.0;

  explicit ValueSize(const kernels::NodesView& nodes) {
    const std::int64_t step = (nodes.key_count + 1023) / 1024;
    double rows = 0.0;
    const auto dv = static_cast<std::size_t>(nodes.value_depth);
    std::vector<double> sum(dv);
    std::vector<double> squares(dv);
    for (std::int64_t i = 0; i < nodes.key_count; i += step, rows += 1.0) {
      const float* row = nodes.values + i * nodes.value_depth;
      for (std::size_t c = 0; c < dv; ++c) {
        const double x = static_cast<double>(row[c]) - static_cast<double>(nodes.values[c]);
        sum[c] += x;
        squares[c] += x * x;
      }
    }
    for (std::size_t c = 0; c < dv; ++c) {
      const double mean = sum[c] / rows;
      const double spread = std::max(0.0, squares[c] / rows - mean * mean);
      const double centre = mean + static_cast<double>(nodes.values[c]);
      variance += spread;
      square += spread + centre * centre;
    }
  }
};

/// `count` thresholds from `largest` down.
Thresholds Grid(double largest, double ratio, int count) {
  Thresholds thresholds;
  for (int t = 0; t < count; ++t) {
    thresholds.push_back(static_cast<float>(largest * std::pow(ratio, -t)));
  }
  return thresholds;
}

/// Between two calibrations, geometrically: part 0 is the first, 1 the second.
Calibration Between(const Calibration& a, const Calibration& b, double part) {
  const auto blend = [part](double x, double y) {
    return x > 0.0 && y > 0.0 ? x * std::pow(y / x, part) : x + (y - x) * part;
  };
  return {static_cast<float>(blend(a.threshold, b.threshold)),
          a.mass_weight,
          blend(a.error, b.error),
          blend(a.lse_error, b.lse_error),
          blend(a.density, b.density),
          blend(a.work, b.work)};
}

/// What was found on a grid, and which of its thresholds (descending) is the largest that meets the
/// tolerance together with all smaller ones: size() where none does.
struct Found {
  std::vector<Calibration> grid;
  std::size_t chosen = 0;

  Found(const kernels::NodesView& nodes, const CalibrationTask& task, const Measured& sum,
        const Thresholds& thresholds, float mass_weight, double variance) {
    const auto rows = static_cast<double>(sum.rows);
    const auto blocks = static_cast<double>(sum.blocks);
    const double size = std::max(sum.out / rows, 1e-4 * variance);
    for (std::size_t t = 0; t < thresholds.size(); ++t) {
      grid.push_back(
          {thresholds[t], mass_weight,
           size > 0.0
               ? Bound(sum.out_error[t], sum.out_error_2[t], rows, kOutErrors) / std::sqrt(size)
               : 0.0,
           Bound(sum.lse_error[t], sum.lse_error_2[t], rows, kLseErrors),
           (sum.exact[t] + sum.closed[t]) / blocks / static_cast<double>(nodes.key_count),
           Work(nodes, sum.exact[t] / blocks, sum.visited[t] / blocks, sum.closed[t] / blocks)});
    }
    chosen = grid.size();
    while (chosen > 0 && Excess(grid[chosen - 1], task.tolerance) <= 1.0) --chosen;
    if (!task.max_density) return;
    // Where the tolerance asks for more pairs than allowed, the smallest threshold that does not.
    while (chosen > 0 && (chosen == grid.size() || grid[chosen].density > *task.max_density) &&
           grid[chosen - 1].density > *task.max_density) {
      --chosen;
    }
  }

  /// Of a root mean square, from sums of squares and of their squares.
  static double Bound(double sum, double squares, double rows, double errors) {
    const double mean = sum / rows;
    const double variance = std::max(0.0, squares / rows - mean * mean);
    return std::sqrt(mean + errors * std::sqrt(variance / (kSampledBlocks * kRowsABlock)));
  }
  static double Excess(const Calibration& at, double tolerance) {
    return kSafety * std::max(at.error, at.lse_error) / tolerance;
  }
};

}  // namespace

std::optional<Calibration> Calibrate(const kernels::NodesView& nodes, const CalibrationTask& task) {
  if (nodes.nodes.empty()) return std::nullopt;
  const ValueSize size(nodes);
  float mass_weight = 0.0F;
  double out_square = 0.0;
  const auto measure = [&](const Thresholds& thresholds, bool first_only) {
    const Measured sum = Measure(nodes, task, thresholds, mass_weight, first_only);
    out_square = sum.out / static_cast<double>(sum.rows);
    return Found(nodes, task, sum, thresholds, mass_weight, size.variance);
  };
  const Thresholds coarse =
      Grid(kLargest * task.tolerance * std::sqrt(size.square), kCoarseRatio, kCoarse);
  // One group that meets the tolerance at the largest thresholds has missed the rare large errors.
  const std::size_t start = std::max<std::size_t>(measure(coarse, true).chosen, kCoarse / 3);
  // An error of the mass by a part of itself counts as much as one of out by that part of its size.
  mass_weight = static_cast<float>(out_square);
  double largest = static_cast<double>(coarse[std::min(start, coarse.size() - 1)]) *
                   std::pow(kFineRatio, kFineAbove);
  const double highest = static_cast<double>(coarse.front());
  const double lowest = static_cast<double>(coarse.back());
  for (int move = 0;; ++move) {
    const Found fine = measure(Grid(largest, kFineRatio, kFine), false);
    const bool too_low = fine.chosen == 0 && largest < highest;
    const bool too_high = fine.chosen == fine.grid.size() && largest > lowest;
    if ((too_low || too_high) && move < kMoves) {
      largest *= std::pow(kFineRatio, too_low ? kFine - 1 : 1 - kFine);
      continue;
    }
    if (fine.chosen == fine.grid.size()) return std::nullopt;
    const Calibration& low = fine.grid[fine.chosen];
    if (fine.chosen == 0) return low;
    const Calibration& high = fine.grid[fine.chosen - 1];
    const double below = std::max(Found::Excess(low, task.tolerance), 1e-6);
    const double above = Found::Excess(high, task.tolerance);
    if (!(above > 1.0 && below <= 1.0) || !std::isfinite(above)) return low;
    return Between(low, high, -std::log(below) / std::log(above / below));
  }
}

}  // namespace smyrf
