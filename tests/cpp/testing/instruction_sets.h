// Runs a test's body once for every instruction set of the machine.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "smyrf/attention.h"

namespace smyrf::testing {

template <class Body>
void ForEachInstructionSet(const Body& body) {
  for (const std::string& name : instruction_sets()) {
    SCOPED_TRACE(name);
    force_instruction_set(name);
    body();
    if (::testing::Test::HasFatalFailure()) break;
  }
  force_instruction_set("");
}

}  // namespace smyrf::testing
