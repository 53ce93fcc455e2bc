// Plans as bytes and files.
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "base/archive.h"
#include "base/message.h"
#include "call/check.h"
#include "smyrf/plan.h"

namespace smyrf {

// The bytes of these are their values: no padding between members.
template <>
inline constexpr bool kIsPlain<QueryBlock> = sizeof(QueryBlock) == 24;
template <>
inline constexpr bool kIsPlain<Node> = sizeof(Node) == 16;
template <>
inline constexpr bool kIsPlain<Segment> = sizeof(Segment) == 32;
template <>
inline constexpr bool kIsPlain<KeyRange> = sizeof(KeyRange) == 8;
template <>
inline constexpr bool kIsPlain<Window> = sizeof(Window) == 16;
template <>
inline constexpr bool kIsPlain<Positions> = sizeof(Positions) == 16;
template <>
inline constexpr bool kIsPlain<HeadRecord> = sizeof(HeadRecord) == 80;
template <>
inline constexpr bool kIsPlain<ForestRecord> = sizeof(ForestRecord) == 56;

namespace {

const Frame kFrame{"plan", "smyrfpln", 3};

/// body(archive, field) for each field of a plan, in the order of the file.
template <class Archive, class Data>
void VisitFields(Archive& archive, Data& data) {
  auto& info = data.info;
  archive(info.reason, info.batch, info.query_heads, info.key_heads, info.queries, info.keys,
          info.depth, info.is_causal, info.has_attn_mask, info.window, info.positions,
          info.n_hashes, info.cluster_size, info.tolerance, info.max_density, info.precision,
          info.precision_error, info.dense_below, info.scale, info.seed);
  archive(data.valid_queries.rows, data.valid_queries.ends, data.valid_keys.rows,
          data.valid_keys.ends, data.heads, data.query_orders, data.key_orders, data.blocks,
          data.ranges, data.nodes, data.forests, data.forest_orders, data.segments,
          data.forest_nodes, data.query_bases, data.key_bases, data.directions, data.profiles);
}

/// Whether lists end one after the other, the last at the end of the array of all.
template <class Record>
void CheckEnds(const std::vector<Record>& records, std::uint64_t Record::* end, std::size_t size) {
  std::uint64_t last = 0;
  for (const Record& record : records) {
    if (record.*end < last) RefuseBytes(kFrame.what);
    last = record.*end;
  }
  if (last != size) RefuseBytes(kFrame.what);
}

void CheckEnds(const FlatLists& lists) {
  std::uint64_t last = 0;
  for (const std::uint64_t end : lists.ends) {
    if (end < last) RefuseBytes(kFrame.what);
    last = end;
  }
  if (last != lists.rows.size()) RefuseBytes(kFrame.what);
}

/// Whether every list of a record lies in its array, and flags and counts are what they stand for.
void CheckRecords(const PlanData& data) {
  CheckEnds(data.valid_queries);
  CheckEnds(data.valid_keys);
  CheckEnds(data.heads, &HeadRecord::query_order, data.query_orders.size());
  CheckEnds(data.heads, &HeadRecord::key_order, data.key_orders.size());
  CheckEnds(data.heads, &HeadRecord::blocks, data.blocks.size());
  CheckEnds(data.heads, &HeadRecord::ranges, data.ranges.size());
  CheckEnds(data.heads, &HeadRecord::nodes, data.nodes.size());
  CheckEnds(data.forests, &ForestRecord::key_order, data.forest_orders.size());
  CheckEnds(data.forests, &ForestRecord::segments, data.segments.size());
  CheckEnds(data.forests, &ForestRecord::nodes, data.forest_nodes.size());
  CheckEnds(data.forests, &ForestRecord::query_basis, data.query_bases.size());
  CheckEnds(data.forests, &ForestRecord::key_basis, data.key_bases.size());
  CheckEnds(data.forests, &ForestRecord::directions, data.directions.size());
  CheckEnds(data.forests, &ForestRecord::profiles, data.profiles.size());
  for (const HeadRecord& head : data.heads) {
    if (head.dense > 1 || head.non_finite > 1) RefuseBytes(kFrame.what);
  }
}

[[noreturn]] void RefuseFile(const std::string& path, const char* what, int reason) {
  Fail(ErrorKind::kValue, "path: ", path, " can't be ", what, ": ",
       std::system_category().message(reason));
}

}  // namespace

std::string Plan::to_bytes() const {
  return ToBytes(kFrame, [&](Writer& writer) {
    // A number may be another method in another program.
    writer(std::string(name(data_->info.method)));
    VisitFields(writer, *data_);
  });
}

Plan Plan::from_bytes(std::string_view bytes) {
  PlanData data;
  FromBytes(kFrame, bytes, [&](Reader& reader) {
    std::string method;
    reader(method);
    const std::optional<Method> found = method_named(method);
    if (!found) RefuseBytes(kFrame.what);
    data.info.method = *found;
    VisitFields(reader, data);
  });
  CheckRecords(data);
  Plan plan = PlanAccess::Make(std::move(data));
  CheckStructure(plan);
  return plan;
}

void Plan::save(const std::string& path) const {
  namespace fs = std::filesystem;
  std::error_code failed;
  // What a link names is replaced, not the link; and nothing that is no file.
  fs::path target = path;
  if (fs::is_symlink(target, failed)) target = fs::weakly_canonical(target, failed);
  const fs::file_status before = fs::status(target, failed);
  if (fs::exists(before) && !fs::is_regular_file(before)) {
    RefuseFile(path, "written", fs::is_directory(before) ? EISDIR : EINVAL);
  }
  const std::string bytes = to_bytes();
  // A name of its own, so that two savers never write one file: "x" refuses one that is there.
  const fs::path part =
      target.parent_path() / Message(".smyrf-", std::random_device()(), std::random_device()());
  const auto refuse = [&](int reason) {
    std::remove(part.c_str());
    RefuseFile(path, "written", reason);
  };
  std::FILE* const file = std::fopen(part.c_str(), "wbx");
  if (file == nullptr) RefuseFile(path, "written", errno);
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  const int reason = errno;
  if (std::fclose(file) != 0 || !written) refuse(written ? errno : reason);
  failed.clear();
  if (fs::exists(before)) fs::permissions(part, before.permissions(), failed);
  if (!failed) fs::rename(part, target, failed);
  if (failed) refuse(failed.value());
}

Plan Plan::load(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) RefuseFile(path, "read", errno);
  std::string bytes;
  std::array<char, 1 << 16> buffer{};
  while (file.read(buffer.data(), buffer.size()) || file.gcount() > 0) {
    bytes.append(buffer.data(), static_cast<std::size_t>(file.gcount()));
    if (!bytes.starts_with(kFrame.magic)) break;  // it may have no end
  }
  if (file.bad()) RefuseFile(path, "read", errno);
  return from_bytes(bytes);
}

}  // namespace smyrf
