// The one exception type of the library.
#pragma once

#include <stdexcept>
#include <string>

#include "smyrf/export.h"
namespace smyrf {

/// What kind of mistake an Error reports. Bindings map it to their language's exceptions.
enum class ErrorKind {
  kValue,        ///< right type, wrong content: shapes that disagree, a dial out of range
  kType,         ///< wrong dtype, rank or kind of argument
  kUnsupported,  ///< a combination that the asked method does not take
};

/// Thrown for every bad argument. The message names the argument, what was given, what is accepted
/// and what to do. Nothing has been written to any output when it is thrown.
class SMYRF_API Error : public std::invalid_argument {
 public:
  Error(ErrorKind kind, const std::string& message) : std::invalid_argument(message), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace smyrf
