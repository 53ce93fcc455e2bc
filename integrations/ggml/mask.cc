#include "mask.h"

#include <algorithm>
#include <cstring>

#include "base/parallel.h"

namespace smyrf::ggml {
namespace {

constexpr std::uint16_t kMinusInfinity = 0xFC00;  // float16

/// Keys [first, end) that a row sees, all of them and no other; otherwise `plain` is false, and the
/// row adds to logits, or sees keys with gaps between them.
struct Interval {
  std::int64_t first = 0, end = 0;
  bool plain = true;
};

Interval Scan(const std::byte* row, std::int64_t keys) {
  const auto* values = reinterpret_cast<const std::uint16_t*>(row);
  std::int64_t seen = 0;
  unsigned other = 0;
  for (std::int64_t block = 0; block < keys; block += 4096) {
    // 16-bit counts, so that the compiler adds 16-bit lanes.
    std::uint16_t zeros = 0;
    std::uint16_t odd = 0;
    const std::int64_t end = std::min(keys, block + 4096);
    for (std::int64_t j = block; j < end; ++j) {
      zeros = static_cast<std::uint16_t>(zeros + (values[j] == 0 ? 1 : 0));
      odd =
          static_cast<std::uint16_t>(odd | (values[j] != 0 && values[j] != kMinusInfinity ? 1 : 0));
    }
    seen += zeros;
    other |= odd;
  }
  Interval interval;
  if (seen == 0 && other == 0) return interval;
  interval.end = keys;
  while (values[interval.first] == kMinusInfinity) ++interval.first;
  while (values[interval.end - 1] == kMinusInfinity) --interval.end;
  interval.plain = other == 0 && seen == interval.end - interval.first;
  return interval;
}

class Grouping {
 public:
  explicit Grouping(const std::vector<Interval>& rows) : rows_(rows) {}

  std::vector<Group> Run() {
    std::vector<Group> groups;
    const auto count = static_cast<std::int64_t>(rows_.size());
    for (std::int64_t row = 0; row < count; row = groups.back().end_row)
      groups.push_back(From(row));
    return groups;
  }

 private:
  const Interval& Row(std::int64_t i) const { return rows_[static_cast<std::size_t>(i)]; }
  bool IsRow(std::int64_t i) const { return i < static_cast<std::int64_t>(rows_.size()); }

  Group From(std::int64_t row) const {
    const Interval& first = Row(row);
    Group group{
        .first_row = row, .end_row = row + 1, .first_key = first.first, .end_key = first.end};
    if (!first.plain) {
      group.kind = Group::Kind::kMask;
      for (; IsRow(group.end_row) && !Row(group.end_row).plain; ++group.end_row) {
        group.first_key = std::min(group.first_key, Row(group.end_row).first);
        group.end_key = std::max(group.end_key, Row(group.end_row).end);
      }
      return group;
    }
    const auto same = [&](const Interval& next) {
      return next.plain && next.first == first.first && next.end == first.end;
    };
    const bool nothing = first.first == first.end;
    if (nothing || !IsRow(row + 1) || !Grows(row + 1)) {
      group.kind = nothing ? Group::Kind::kNothing : Group::Kind::kRectangle;
      while (IsRow(group.end_row) && same(Row(group.end_row))) ++group.end_row;
      return group;
    }
    group.kind = Group::Kind::kCausal;
    for (; IsRow(group.end_row) && Grows(group.end_row); ++group.end_row) {
      const Interval& next = Row(group.end_row);
      if (group.window < 0 && next.first == group.first_key + 1) {
        group.window = next.end - next.first - 1;
      }
      const std::int64_t begin = group.window < 0
                                     ? group.first_key
                                     : std::max(group.first_key, next.end - 1 - group.window);
      if (next.first != begin) break;
      group.end_key = next.end;
    }
    return group;
  }

  /// Whether a row sees the key behind those that the row before it sees.
  bool Grows(std::int64_t row) const {
    const Interval& next = Row(row);
    const Interval& before = Row(row - 1);
    return next.plain && next.end == before.end + 1 && before.first < before.end;
  }

  const std::vector<Interval>& rows_;
};

}  // namespace

std::vector<Group> Recognise(const MaskView& mask, const Run& run) {
  std::vector<Interval> rows(static_cast<std::size_t>(mask.rows));
  constexpr std::int64_t kRows = 64;
  ParallelFor((mask.rows + kRows - 1) / kRows, run, [&](std::int64_t block) {
    const std::int64_t end = std::min(mask.rows, (block + 1) * kRows);
    for (std::int64_t i = block * kRows; i < end; ++i) {
      rows[static_cast<std::size_t>(i)] = Scan(mask.data + i * mask.row_bytes, mask.keys);
    }
  });
  return Grouping(rows).Run();
}

}  // namespace smyrf::ggml
