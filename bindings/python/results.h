// The classes that calls give back.
#pragma once

#include <nanobind/nanobind.h>

namespace smyrf::bindings {

void DefinePlan(const nanobind::module_& m);
void DefineStatistics(const nanobind::module_& m);

}  // namespace smyrf::bindings
