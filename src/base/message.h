// Puts error messages together: Fail(ErrorKind::kValue, "key: got shape ", Shape(key), ...).
#pragma once

#include <algorithm>
#include <cstddef>
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

/// At most the four dimensions that a view has room for.
template <class Void>
std::string Shape(const BasicTensorView<Void>& view) {
  std::ostringstream stream;
  stream << '(';
  const auto rank = static_cast<std::size_t>(std::clamp(view.rank, 0, 4));
  for (std::size_t i = 0; i < rank; ++i) stream << (i > 0 ? ", " : "") << view.shape[i];
  stream << (rank == 1 ? ",)" : ")");
  return stream.str();
}

}  // namespace smyrf
