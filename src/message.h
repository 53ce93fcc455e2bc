// Puts error messages together: Fail(ErrorKind::kValue, "key: got shape ", Shape(key), ...).
#pragma once

#include <sstream>
#include <string>

#include "smyrf/error.h"
#include "smyrf/tensor.h"

namespace smyrf {

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

template <class Void>
std::string Shape(const BasicTensorView<Void>& view) {
  std::ostringstream stream;
  stream << '(';
  for (int i = 0; i < view.rank; ++i) {
    stream << (i ? ", " : "") << view.shape[static_cast<std::size_t>(i)];
  }
  stream << (view.rank == 1 ? ",)" : ")");
  return stream.str();
}

}  // namespace smyrf
