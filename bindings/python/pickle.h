// Plans and statistics as Python's pickle and copy take them.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <string_view>

#include "call.h"
#include "fail.h"

namespace smyrf::bindings {

/// The object that `to_bytes` gave these bytes of.
template <class T>
T FromState(const char* name, nb::handle state) {
  if (!nb::isinstance<nb::bytes>(state)) {
    Fail(ErrorKind::kType, name, ": got ", TypeName(state),
         " as its pickled state, expected bytes");
  }
  const auto held = nb::borrow<nb::bytes>(state);
  return T::from_bytes(std::string_view(held.c_str(), held.size()));
}

/// Gives a class the two calls that pickle and copy make: an object says of what it can be made
/// again, and the class makes it. `load` is FromState of the class.
/// A constructor and not nb::new_: of a class with a `__new__` in Python, object.__new__ makes
/// instances that nanobind doesn't know, and their end aborts the process.
template <class T>
void DefinePickling(nb::class_<T>& type, T (*load)(nb::handle)) {
  type.def(
      "__init__", [load](T* self, nb::handle state) { new (self) T(load(state)); },
      nb::arg("state").none(),
      "For pickle and copy: what `__reduce__` gave. Damaged bytes raise ValueError.");
  type.def("__reduce__", [](const T& value) {
    const std::string bytes = value.to_bytes();
    return nb::make_tuple(nb::type<T>(), nb::make_tuple(nb::bytes(bytes.data(), bytes.size())));
  });
}

}  // namespace smyrf::bindings
