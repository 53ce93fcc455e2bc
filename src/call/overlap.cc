#include "call/overlap.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdlib>
#include <numeric>

namespace smyrf {
namespace {

/// Steps of the search before it gives up: well below a millisecond. Slices and transposes of one
/// buffer take less than ten.
constexpr int kMostSteps = 1 << 15;

/// A term t * stride of an address, in bytes, for every integer t from least to most.
struct Term {
  std::int64_t stride = 0;
  std::int64_t least = 0;
  std::int64_t most = 0;
};

/// What a view covers: runs of bytes that begin at `begin` plus a sum of terms.
struct Runs {
  std::intptr_t begin = 0;
  std::int64_t bytes = 0;  ///< of a run; 0: the view is empty
  std::array<Term, 4> terms{};
  std::size_t term_count = 0;
};

/// Dimensions that continue each other become one, and those without gaps part of the run.
Runs RunsOf(const TensorView& view) {
  Runs runs;
  runs.begin = reinterpret_cast<std::intptr_t>(view.data);
  struct Dimension {
    std::int64_t stride, size;
  };
  std::array<Dimension, 4> dimensions{};
  std::size_t count = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(view.rank); ++i) {
    if (view.shape[i] == 0) return runs;
    if (view.shape[i] == 1 || view.strides[i] == 0) continue;
    const std::int64_t stride = view.strides[i] * SizeOf(view.dtype);
    if (stride < 0) runs.begin += (view.shape[i] - 1) * stride;
    // Kept in order: GCC 12 warns of std::sort of an array so small.
    std::size_t at = count++;
    for (; at > 0 && dimensions[at - 1].stride > std::abs(stride); --at) {
      dimensions[at] = dimensions[at - 1];
    }
    dimensions[at] = {std::abs(stride), view.shape[i]};
  }
  runs.bytes = SizeOf(view.dtype);
  for (std::size_t i = 0; i < count; ++i) {
    const auto& [stride, size] = dimensions[i];
    if (runs.term_count == 0 && stride <= runs.bytes) {
      runs.bytes += (size - 1) * stride;
      continue;
    }
    if (runs.term_count > 0) {
      Term& last = runs.terms[runs.term_count - 1];
      const std::int64_t ratio = stride / last.stride;
      if (stride % last.stride == 0 && ratio <= last.most + 1) {
        last.most += (size - 1) * ratio;
        continue;
      }
    }
    runs.terms[runs.term_count++] = {stride, 0, size - 1};
  }
  return runs;
}

/// The sums of terms that two views can differ by.
class Differences {
 public:
  /// A byte is shared where a run's begin less one of the other's is between two bounds.
  Differences(const Runs& runs, const Runs& other) {
    for (std::size_t i = 0; i < runs.term_count; ++i) Add(runs.terms[i]);
    for (std::size_t i = 0; i < other.term_count; ++i) {
      Add({other.terms[i].stride, -other.terms[i].most, 0});
    }
    std::sort(terms_.begin(), terms_.begin() + count_,
              [](const Term& a, const Term& b) { return a.stride > b.stride; });
    for (std::size_t i = count_; i-- > 0;) {
      least_[i] = least_[i + 1] + terms_[i].stride * terms_[i].least;
      most_[i] = most_[i + 1] + terms_[i].stride * terms_[i].most;
      divisor_[i] = std::gcd(divisor_[i + 1], terms_[i].stride);
    }
  }

  /// Whether a sum lies from `low` to `high`.
  Sharing Reach(std::int64_t low, std::int64_t high) { return ReachFrom(0, low, high); }

 private:
  void Add(const Term& term) {
    for (std::size_t i = 0; i < count_; ++i) {
      if (terms_[i].stride != term.stride) continue;
      terms_[i].least += term.least;
      terms_[i].most += term.most;
      return;
    }
    terms_[count_++] = term;
  }

  static std::int64_t FloorDivide(std::int64_t a, std::int64_t b) {
    return a / b - (a % b < 0 ? 1 : 0);
  }

  /// The same of the terms from the first-th on, the largest strides first: the others leave few
  /// multiples of a stride to try.
  Sharing ReachFrom(std::size_t first, std::int64_t low, std::int64_t high) {
    low = std::max(low, least_[first]);
    high = std::min(high, most_[first]);
    if (low > high) return Sharing::kNone;
    if (first == count_) return Sharing::kSome;  // both are 0
    if (FloorDivide(high, divisor_[first]) * divisor_[first] < low) return Sharing::kNone;
    const Term& term = terms_[first];
    const std::int64_t least =
        std::max(term.least, -FloorDivide(most_[first + 1] - low, term.stride));
    const std::int64_t most =
        std::min(term.most, FloorDivide(high - least_[first + 1], term.stride));
    for (std::int64_t t = least; t <= most; ++t) {
      if (++steps_ > kMostSteps) return Sharing::kUnknown;
      const Sharing found = ReachFrom(first + 1, low - t * term.stride, high - t * term.stride);
      if (found != Sharing::kNone) return found;
    }
    return Sharing::kNone;
  }

  std::array<Term, 8> terms_{};  ///< descending strides
  std::size_t count_ = 0;
  // Of the sums of the terms from one on: the least, the most, and what divides all of them.
  std::array<std::int64_t, 9> least_{}, most_{}, divisor_{};
  int steps_ = 0;
};

}  // namespace

Sharing SharedMemory(const TensorView& view, const TensorView& other) {
  const Runs runs = RunsOf(view);
  const Runs of_other = RunsOf(other);
  if (runs.bytes == 0 || of_other.bytes == 0) return Sharing::kNone;
  const std::int64_t apart = of_other.begin - runs.begin;
  return Differences(runs, of_other).Reach(apart - runs.bytes + 1, apart + of_other.bytes - 1);
}

}  // namespace smyrf
