// What keeps a program in C safe from exceptions and from structs of another version.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "smyrf/c/smyrf.h"
#include "smyrf/error.h"
#include "smyrf/version.h"

namespace smyrf::c {

/// Of a fixed size: saying that memory is short needs none.
inline thread_local std::array<char, 2048> last_error{};

inline smyrf_status Failed(smyrf_status status, const char* why) noexcept {
  const std::size_t length = std::min(std::strlen(why), last_error.size() - 1);
  std::memcpy(last_error.data(), why, length);
  last_error[length] = '\0';
  return status;
}

inline smyrf_status StatusOf(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kValue:
      return SMYRF_ERROR_VALUE;
    case ErrorKind::kType:
      return SMYRF_ERROR_TYPE;
    case ErrorKind::kUnsupported:
      return SMYRF_ERROR_UNSUPPORTED;
  }
  return SMYRF_ERROR_INTERNAL;
}

template <class Body>
smyrf_status Guarded(const Body& body) noexcept {
  constexpr const char* kNoMemory = "out of memory: the system gave no more to this call";
  try {
    body();
    return SMYRF_OK;
  } catch (const Error& error) {
    return Failed(StatusOf(error.kind()), error.what());
  } catch (const std::bad_alloc&) {
    return Failed(SMYRF_ERROR_NO_MEMORY, kNoMemory);
  } catch (const std::length_error&) {  // more elements than any memory holds
    return Failed(SMYRF_ERROR_NO_MEMORY, kNoMemory);
  } catch (const std::exception& error) {
    return Failed(SMYRF_ERROR_INTERNAL, error.what());
  } catch (...) {
    return Failed(SMYRF_ERROR_INTERNAL, "an exception of an unknown type");
  }
}

[[noreturn]] inline void Refuse(const std::string& name, const std::string& why,
                                ErrorKind kind = ErrorKind::kValue) {
  throw Error(kind, name + ": " + why);
}

inline void Need(const void* given, const char* name) {
  if (given == nullptr) Refuse(name, "got a null pointer, and this one must be given");
}

// --- Structs that grow ----------------------------------------------------------------------

/// The struct_size of `given`, which must be between `least` and what this library knows.
template <class T>
std::size_t StructSize(const T* given, const char* name, std::size_t least) {
  Need(given, name);
  std::size_t size = 0;
  std::memcpy(&size, given, sizeof(size));
  const std::string got = "got struct_size " + std::to_string(size);
  if (size > sizeof(T)) {
    Refuse(name, got + ", and this library (" SMYRF_VERSION_STRING ") knows " +
                     std::to_string(sizeof(T)) +
                     " bytes: set struct_size to the struct's sizeof; if it is, the program was "
                     "compiled with a newer header, so link the library of that version");
  }
  if (size < least || size % alignof(T) != 0) {
    Refuse(name, got + ", which is no size of this struct; set struct_size to its sizeof");
  }
  return size;
}

/// A copy of a struct that may be older and smaller: what it does not have is 0.
template <class T>
T Known(const T* given, const char* name, std::size_t least) {
  static_assert(std::is_trivially_copyable_v<T>);
  const std::size_t size = StructSize(given, name, least);
  T known{};
  std::memcpy(&known, given, size);
  return known;
}

/// Fills as much of a struct as the program knows.
template <class T>
void Give(T value, T* to, const char* name) {
  static_assert(std::is_trivially_copyable_v<T>);
  value.struct_size = StructSize(to, name, sizeof(std::size_t));
  std::memcpy(to, &value, value.struct_size);
}

template <class T, class... Parts>
std::unique_ptr<T> MakeHandle(Parts&&... parts) {
  return std::unique_ptr<T>(new T{std::forward<Parts>(parts)...});
}

/// *to becomes a handle of what `make` gives, or null where that throws.
template <class T, class Make>
void GiveHandle(T** to, const char* name, const Make& make) {
  Need(static_cast<const void*>(to), name);
  *to = nullptr;
  *to = make().release();
}

}  // namespace smyrf::c
