// Puts error messages together: Fail(ErrorKind::kValue, "plan: got ", name, ...).
#pragma once

#include <sstream>
#include <string>

#include "smyrf/error.h"

namespace smyrf::bindings {

template <class... Parts>
std::string Message(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

template <class... Parts>
[[noreturn]] void Fail(ErrorKind kind, const Parts&... parts) {
  throw Error(kind, Message(parts...));
}

}  // namespace smyrf::bindings
