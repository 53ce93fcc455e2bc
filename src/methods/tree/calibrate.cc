#include "methods/tree/calibrate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "methods/tree/measure.h"

namespace smyrf {
namespace {

/// The thresholds that are tried: a geometric grid from kLargest times the values' RMS down, where
/// nearly all nodes stay closed. Small ones cost time, so all are tried on one group of blocks
/// first, and on all groups those down to kBelow steps below what it finds (kLeast at least: one
/// group alone may have missed the rare large errors), then kMore more until the answer lies
/// inside.
constexpr double kLargest = 32.0;
constexpr double kRatio = 1.4;
constexpr std::size_t kBelow = 5;
constexpr std::size_t kLeast = 26;
constexpr std::size_t kMore = 8;
/// Of a row's mass: below it, keys at and next to its own position are like any others.
constexpr double kNearShare = 0.005;
/// From one threshold to the next, of errors between which it is interpolated.
constexpr double kMostJump = 3.0;

/// Estimates are upper bounds: a mean square and so many of its standard errors, which heavy tails
/// widen: chosen on real heads so that 95 in 100 keep the tolerance. (Without, one head in ten errs
/// by a quarter more than asked for.)
constexpr double kOutErrors = 8.0;
constexpr double kLseErrors = 5.0;

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

/// Between two calibrations, geometrically: part 0 is the first, 1 the second.
Calibration Between(const Calibration& a, const Calibration& b, double part) {
  const auto blend = [part](double x, double y) {
    return x > 0.0 && y > 0.0 ? x * std::pow(y / x, part) : x + (y - x) * part;
  };
  return {static_cast<float>(blend(a.threshold, b.threshold)),
          a.scoring,
          blend(a.error, b.error),
          blend(a.lse_error, b.lse_error),
          blend(a.density, b.density),
          blend(a.work, b.work)};
}

/// What was found on a grid, and which of its thresholds (descending) is the largest that meets the
/// tolerance together with all smaller ones: size() where none does. `capped`: a larger one, for
/// max_density.
struct Found {
  std::vector<Calibration> grid;
  std::size_t chosen = 0;
  bool capped = false;

  Found(const kernels::NodesView& nodes, const CalibrationTask& task, const Measured& sum,
        std::span<const float> thresholds, const Scoring& scoring, double variance, double sample) {
    const auto rows = static_cast<double>(sum.rows);
    const auto blocks = static_cast<double>(sum.blocks);
    const double size = std::max(sum.out / rows, 1e-4 * variance);  // NaN where a value is
    for (std::size_t t = 0; t < thresholds.size(); ++t) {
      grid.push_back(
          {thresholds[t], scoring,
           size > 0.0 ? Bound(sum.out_error[t], sum.out_error_2[t], rows, sample, kOutErrors) /
                            std::sqrt(size)
                      : (size == 0.0 ? 0.0 : std::numeric_limits<double>::infinity()),
           Bound(sum.lse_error[t], sum.lse_error_2[t], rows, sample, kLseErrors),
           (sum.exact[t] + sum.closed[t]) / blocks / static_cast<double>(nodes.key_count),
           Work(nodes, sum.exact[t] / blocks, sum.visited[t] / blocks, sum.closed[t] / blocks)});
    }
    chosen = grid.size();
    while (chosen > 0 && Excess(grid[chosen - 1], task.tolerance) <= 1.0) --chosen;
    if (!task.max_density) return;
    // The smallest threshold that asks for no more pairs than allowed, where the tolerance's does.
    std::size_t allowed = 0;
    while (allowed < grid.size() && grid[allowed].density <= *task.max_density) ++allowed;
    if (allowed <= chosen && allowed < grid.size()) {
      chosen = std::max<std::size_t>(allowed, 1) - 1;
      capped = true;
    }
  }

  /// Of a root mean square, from sums of squares and of their squares over `rows`, for a sample of
  /// `size` rows.
  static double Bound(double sum, double squares, double rows, double size, double errors) {
    const double mean = sum / rows;
    const double variance = std::max(0.0, squares / rows - mean * mean);
    return std::sqrt(mean + errors * std::sqrt(variance / size));
  }
  /// Of the larger error; NaN, which no tolerance allows, where one is.
  static double Excess(const Calibration& at, double tolerance) {
    const bool of_out = std::isnan(at.error) || at.error > at.lse_error;
    return (of_out ? at.error : at.lse_error) / tolerance;
  }
};

}  // namespace

std::optional<Calibration> Calibrate(const kernels::NodesView& nodes, const ValueSketch& values,
                                     const CalibrationTask& task) {
  if (nodes.nodes.empty()) return std::nullopt;
  const ValueSize size(nodes);
  // Squares of float32 would vanish or overflow, and with them every error.
  constexpr double kSmallest = 1e-32;
  constexpr double kGreatest = 1e32;
  if (size.square != 0.0 && !(size.square >= kSmallest && size.square <= kGreatest)) {
    return std::nullopt;
  }
  // Values that are all zero have no error but lse's.
  const double square = size.square > 0.0 ? size.square : 1.0;
  std::array<float, kMostThresholds> thresholds{};
  for (std::size_t t = 0; t < kMostThresholds; ++t) {
    thresholds[t] = static_cast<float>(kLargest * std::sqrt(square) *
                                       std::pow(kRatio, -static_cast<double>(t)));
  }
  const kernels::NodesView sketch = values.View(nodes);
  const SampledRows rows(nodes, sketch, task);
  const ExactRows exact = rows.Exact();
  // A value that is not finite, in whichever row.
  if (!std::isfinite(exact.square_output)) return std::nullopt;
  // An error of the mass by a part of itself counts as much as one of out by that part of its size.
  const Scoring scoring{static_cast<float>(std::max(exact.square_output, 1e-4 * square)),
                        exact.near_share > kNearShare};
  const auto find = [&](const Measured& sum, std::size_t count) {
    return Found(nodes, task, sum, std::span(thresholds).first(count), scoring, size.variance,
                 static_cast<double>(rows.count()));
  };
  const Measured first = rows.Measure(thresholds, scoring, 0, 1);
  std::size_t count = std::max(find(first, kMostThresholds).chosen + kBelow, kLeast);
  for (;; count += kMore) {
    count = std::min(count, kMostThresholds);
    Measured sum = rows.Measure(std::span(thresholds).first(count), scoring, 1, rows.groups());
    sum.Add(first);
    const Found found = find(sum, count);
    if (found.capped) return found.grid[found.chosen];
    if (found.chosen == count) {
      if (count < kMostThresholds) continue;
      if (!task.max_density) return std::nullopt;
      return found.grid.back();
    }
    const Calibration& low = found.grid[found.chosen];
    if (found.chosen == 0) return low;
    const Calibration& high = found.grid[found.chosen - 1];
    const double below = Found::Excess(low, task.tolerance);
    const double above = Found::Excess(high, task.tolerance);
    // Across a jump the error is that of one side.
    if (!(above > 1.0 && below <= 1.0 && above < kMostJump * below)) return low;
    Calibration met = Between(low, high, -std::log(below) / std::log(above / below));
    met.error = std::min(met.error, task.tolerance);  // but for rounding they are
    met.lse_error = std::min(met.lse_error, task.tolerance);
    return met;
  }
}

}  // namespace smyrf
