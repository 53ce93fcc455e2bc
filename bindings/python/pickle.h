// Plans and statistics as bytes, for Python's pickle and copy.
#pragma once

#include <nanobind/nanobind.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/message.h"
#include "call.h"
#include "call/check.h"
#include "smyrf/smyrf.h"

namespace smyrf::bindings {

/// Grows with every change of the fields below: bytes of another version are refused.
inline constexpr int kPickleVersion = 1;

template <class Archive, class Range>
  requires std::is_same_v<std::remove_const_t<Range>, KeyRange>
void VisitFields(Archive& archive, Range& range) {
  archive(range.begin, range.end, range.partial);
}

template <class Archive, class Tree>
  requires std::is_same_v<std::remove_const_t<Tree>, KeyTree>
void VisitFields(Archive& archive, Tree& tree) {
  archive(tree.key_order, tree.sinks, tree.nodes, tree.roots, tree.query_basis, tree.key_basis,
          tree.directions, tree.profiles);
}

template <class Archive, class Head>
  requires std::is_same_v<std::remove_const_t<Head>, HeadPlan>
void VisitFields(Archive& archive, Head& head) {
  archive(head.query_order, head.key_order, head.blocks, head.ranges, head.nodes, head.dense,
          head.non_finite, head.expected_error, head.expected_lse_error, head.expected_work);
}

template <class Archive, class AnyPlan>
  requires std::is_same_v<std::remove_const_t<AnyPlan>, Plan>
void VisitFields(Archive& archive, AnyPlan& plan) {
  archive(plan.method, plan.reason, plan.batch, plan.query_heads, plan.key_heads, plan.queries,
          plan.keys, plan.depth, plan.is_causal, plan.has_attn_mask, plan.window,
          plan.valid_queries, plan.valid_keys, plan.n_hashes, plan.cluster_size, plan.tolerance,
          plan.max_density, plan.dense_below, plan.scale, plan.key_trees, plan.seed, plan.heads);
}

template <class Archive, class Head>
  requires std::is_same_v<std::remove_const_t<Head>, Statistics::Head>
void VisitFields(Archive& archive, Head& head) {
  archive(head.density, head.seconds, head.planning_seconds, head.dense, head.non_finite,
          head.expected_error, head.expected_lse_error, head.expected_work);
}

template <class Archive, class AnyStatistics>
  requires std::is_same_v<std::remove_const_t<AnyStatistics>, Statistics>
void VisitFields(Archive& archive, AnyStatistics& statistics) {
  archive(statistics.method, statistics.reason, statistics.batch, statistics.query_heads,
          statistics.heads, statistics.planning_seconds, statistics.execution_seconds,
          statistics.instruction_set);
}

/// Types whose memory is their value. A bool's is not: bytes other than 0 and 1 are no bool.
template <class T>
inline constexpr bool kIsPlain =
    !std::is_same_v<T, bool> && !std::is_enum_v<T> &&
    (std::is_arithmetic_v<T> || std::has_unique_object_representations_v<T>);
static_assert(kIsPlain<QueryBlock> && kIsPlain<Node> && kIsPlain<Window> && !kIsPlain<KeyRange>);

/// Appends values to bytes: lists behind their length, in the machine's byte order.
class Writer {
 public:
  template <class... Ts>
  void operator()(const Ts&... values) {
    (Write(values), ...);
  }
  std::string Take() { return std::move(bytes_); }

 private:
  void Append(const void* data, std::size_t size) {
    bytes_.append(static_cast<const char*>(data), size);
  }
  template <class T>
  void Write(const T& value) {
    if constexpr (std::is_same_v<T, bool> || std::is_enum_v<T>) {
      Write(static_cast<std::uint8_t>(value));
    } else if constexpr (kIsPlain<T>) {
      Append(&value, sizeof(T));
    } else {
      VisitFields(*this, value);
    }
  }
  template <class T>
  void Write(const std::optional<T>& value) {
    Write(value.has_value());
    if (value) Write(*value);
  }
  void Write(const std::string& text) {
    Write(std::uint64_t{text.size()});
    Append(text.data(), text.size());
  }
  template <class T>
  void Write(const std::vector<T>& list) {
    Write(std::uint64_t{list.size()});
    if constexpr (kIsPlain<T>) {
      Append(list.data(), list.size() * sizeof(T));
    } else {
      for (const T& value : list) Write(value);
    }
  }

  std::string bytes_;
};

[[noreturn]] inline void RefuseBytes(const char* name) {
  Fail(ErrorKind::kValue, name, ": its pickled bytes are damaged or not smyrf's; make it again");
}

/// Takes values from bytes as Writer put them there, and throws Error where they end too early.
class Reader {
 public:
  Reader(const char* name, std::string_view bytes) : name_(name), bytes_(bytes) {}

  template <class... Ts>
  void operator()(Ts&... values) {
    (Read(values), ...);
  }
  /// One value that is all there is.
  template <class T>
  T TakeWhole() {
    T value;
    Read(value);
    if (!bytes_.empty()) Refuse();
    return value;
  }

 private:
  [[noreturn]] void Refuse() const { RefuseBytes(name_); }
  std::string_view Take(std::size_t size) {
    if (size > bytes_.size()) Refuse();
    const std::string_view taken = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return taken;
  }
  std::size_t Length() {
    std::uint64_t length = 0;
    Read(length);
    if (length > bytes_.size()) Refuse();  // no value takes less than a byte
    return length;
  }
  template <class T>
  void Read(T& value) {
    if constexpr (std::is_same_v<T, bool> || std::is_enum_v<T>) {
      std::uint8_t byte = 0;
      Read(byte);
      if (byte > (std::is_same_v<T, bool> ? 1 : static_cast<int>(Method::kTree))) Refuse();
      value = static_cast<T>(byte);
    } else if constexpr (kIsPlain<T>) {
      const std::string_view taken = Take(sizeof(T));
      std::memcpy(&value, taken.data(), taken.size());
    } else {
      VisitFields(*this, value);
    }
  }
  template <class T>
  void Read(std::optional<T>& value) {
    bool has_value = false;
    Read(has_value);
    if (has_value) Read(value.emplace());
  }
  void Read(std::string& text) { text = Take(Length()); }
  template <class T>
  void Read(std::vector<T>& list) {
    const std::size_t length = Length();
    if constexpr (kIsPlain<T>) {
      if (length > bytes_.size() / sizeof(T)) Refuse();
      list.resize(length);
      const std::string_view taken = Take(length * sizeof(T));
      if (length > 0) std::memcpy(list.data(), taken.data(), taken.size());
    } else {
      for (std::size_t i = 0; i < length; ++i) Read(list.emplace_back());
    }
  }

  const char* name_;
  std::string_view bytes_;
};

/// FNV-1a: one changed byte always changes it. `name` keeps statistics from passing for a plan.
inline std::uint64_t Checksum(std::string_view name, std::string_view bytes) {
  std::uint64_t sum = 0xCBF29CE484222325U;
  for (const std::string_view part : {name, bytes}) {
    for (const char c : part) sum = (sum ^ static_cast<unsigned char>(c)) * 0x100000001B3U;
  }
  return sum;
}

/// The fields, then their checksum.
template <class T>
nb::bytes ToBytes(const char* name, const T& value) {
  Writer writer;
  writer(value);
  std::string bytes = writer.Take();
  const std::uint64_t sum = Checksum(name, bytes);
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
  return nb::bytes(bytes.data(), bytes.size());
}

/// Throws Error for bytes that ToBytes did not make of such a value on such a machine.
template <class T>
T FromBytes(const char* name, nb::handle version, nb::handle state) {
  const int given = ToInteger<int>(name, version, "the version number of a pickled object");
  if (given != kPickleVersion) {
    Fail(ErrorKind::kValue, name, ": was pickled in version ", given, ", this smyrf reads version ",
         kPickleVersion, "; make it again");
  }
  if (!nb::isinstance<nb::bytes>(state)) {
    Fail(ErrorKind::kType, name, ": got ", TypeName(state),
         " as its pickled state, expected bytes");
  }
  const auto held = nb::borrow<nb::bytes>(state);
  std::string_view bytes(held.c_str(), held.size());
  std::uint64_t sum = 0;
  if (bytes.size() < sizeof(sum)) RefuseBytes(name);
  std::memcpy(&sum, bytes.data() + bytes.size() - sizeof(sum), sizeof(sum));
  bytes.remove_suffix(sizeof(sum));
  if (sum != Checksum(name, bytes)) RefuseBytes(name);
  return Reader(name, bytes).TakeWhole<T>();
}

inline Plan LoadPlan(nb::handle version, nb::handle state) {
  Plan plan = FromBytes<Plan>("Plan", version, state);
  CheckStructure(plan);
  return plan;
}

inline Statistics LoadStatistics(nb::handle version, nb::handle state) {
  Statistics statistics = FromBytes<Statistics>("Statistics", version, state);
  const auto batch = static_cast<double>(statistics.batch);
  const auto heads = static_cast<double>(statistics.query_heads);
  if (!(statistics.method != Method::kAuto && batch >= 0.0 && heads >= 0.0 &&
        batch <= kMaxAllRows && heads <= kMaxAllRows &&
        batch * heads == static_cast<double>(statistics.heads.size()))) {
    RefuseBytes("Statistics");
  }
  return statistics;
}

/// Gives a class the two calls that pickle and copy make: an object says of what it can be made
/// again, and the class makes it.
template <class T>
void DefinePickling(nb::class_<T>& type, const char* name, T (*load)(nb::handle, nb::handle)) {
  type.def(nb::new_(load), nb::arg("version").none(), nb::arg("state").none(),
           "For pickle and copy: what `__reduce__` gave. Damaged bytes raise ValueError.");
  type.def("__reduce__", [name](const T& value) {
    return nb::make_tuple(nb::type<T>(), nb::make_tuple(kPickleVersion, ToBytes(name, value)));
  });
}

}  // namespace smyrf::bindings
