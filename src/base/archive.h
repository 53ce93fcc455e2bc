// Values as bytes that are saved: lists behind their length, in the machine's byte order, framed by
// what they are, a version and a checksum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/message.h"

namespace smyrf {

/// Types whose bytes are their value. A struct without padding says so by a specialisation; a
/// bool's bytes other than 0 and 1 are none.
template <class T>
inline constexpr bool kIsPlain = std::is_arithmetic_v<T> && !std::is_same_v<T, bool>;

class Writer {
 public:
  template <class... Ts>
  void operator()(const Ts&... values) {
    (Write(values), ...);
  }
  std::string Take() { return std::move(bytes_); }

 private:
  void Append(const void* data, std::size_t size) {
    if (size > 0) bytes_.append(static_cast<const char*>(data), size);
  }
  template <class T>
  void Write(const T& value) {
    if constexpr (std::is_same_v<T, bool> || std::is_enum_v<T>) {
      Write(static_cast<std::uint8_t>(value));
    } else {
      static_assert(kIsPlain<T>);
      Append(&value, sizeof(T));
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
    static_assert(kIsPlain<T>);
    Write(std::uint64_t{list.size()});
    Append(list.data(), list.size() * sizeof(T));
  }

  std::string bytes_;
};

[[noreturn]] inline void RefuseBytes(const char* what) {
  Fail(ErrorKind::kValue, what, ": its bytes are damaged or not smyrf's; make it again");
}

/// Takes values as Writer put them there; throws Error where they can't be.
class Reader {
 public:
  Reader(const char* what, std::string_view bytes) : what_(what), bytes_(bytes) {}

  template <class... Ts>
  void operator()(Ts&... values) {
    (Read(values), ...);
  }
  /// Throws unless all was taken.
  void End() const {
    if (!bytes_.empty()) Refuse();
  }

 private:
  [[noreturn]] void Refuse() const { RefuseBytes(what_); }
  std::string_view Take(std::size_t size) {
    if (size > bytes_.size()) Refuse();
    const std::string_view taken = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return taken;
  }
  std::size_t Length(std::size_t element) {
    std::uint64_t length = 0;
    Read(length);
    if (length > bytes_.size() / element) Refuse();
    return length;
  }
  template <class T>
  void Read(T& value) {
    if constexpr (std::is_same_v<T, bool> || std::is_enum_v<T>) {
      std::uint8_t byte = 0;
      Read(byte);
      if (std::is_same_v<T, bool> && byte > 1) Refuse();
      value = static_cast<T>(byte);
    } else {
      static_assert(kIsPlain<T>);
      const std::string_view taken = Take(sizeof(T));
      std::memcpy(&value, taken.data(), taken.size());
    }
  }
  template <class T>
  void Read(std::optional<T>& value) {
    bool has_value = false;
    Read(has_value);
    value.reset();
    if (has_value) Read(value.emplace());
  }
  void Read(std::string& text) { text = Take(Length(1)); }
  template <class T>
  void Read(std::vector<T>& list) {
    static_assert(kIsPlain<T>);
    list.resize(Length(sizeof(T)));
    const std::string_view taken = Take(list.size() * sizeof(T));
    if (!taken.empty()) std::memcpy(list.data(), taken.data(), taken.size());
  }

  const char* what_;
  std::string_view bytes_;
};

/// What a frame is of: eight letters, which no other kind of value has, and its version, which
/// grows with every change of its fields or of what they mean.
struct Frame {
  const char* what;  ///< for messages
  std::string_view magic;
  std::uint32_t version;
};

/// Reads otherwise on a machine of the other byte order.
inline constexpr std::uint32_t kByteOrder = 0x01020304;

/// FNV-1a: one changed byte always changes it.
inline std::uint64_t Checksum(std::string_view bytes) {
  std::uint64_t sum = 0xCBF29CE484222325U;
  for (const char c : bytes) sum = (sum ^ static_cast<unsigned char>(c)) * 0x100000001B3U;
  return sum;
}

/// write(Writer&) between frame and checksum.
template <class Write>
std::string ToBytes(const Frame& frame, const Write& write) {
  Writer writer;
  writer(kByteOrder, frame.version);
  write(writer);
  std::string bytes = std::string(frame.magic) + writer.Take();
  const std::uint64_t sum = Checksum(bytes);
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
  return bytes;
}

/// read(Reader&) of bytes that ToBytes made of such a frame; throws Error for any other.
template <class Read>
void FromBytes(const Frame& frame, std::string_view bytes, const Read& read) {
  std::uint64_t sum = 0;
  if (bytes.size() < frame.magic.size() + sizeof(sum) || !bytes.starts_with(frame.magic)) {
    RefuseBytes(frame.what);
  }
  std::memcpy(&sum, bytes.data() + bytes.size() - sizeof(sum), sizeof(sum));
  bytes.remove_suffix(sizeof(sum));
  if (sum != Checksum(bytes)) RefuseBytes(frame.what);
  Reader reader(frame.what, bytes.substr(frame.magic.size()));
  std::uint32_t order = 0;
  std::uint32_t version = 0;
  reader(order, version);
  if (order != kByteOrder) RefuseBytes(frame.what);
  if (version != frame.version) {
    Fail(ErrorKind::kValue, frame.what, ": was saved in version ", version,
         ", this smyrf reads version ", frame.version, "; make it again");
  }
  read(reader);
  reader.End();
}

}  // namespace smyrf
