// Runs a test's body once for every instruction set of the machine.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "smyrf/attention.h"

namespace smyrf::testing {

template <class Body>
void ForEachInstructionSet(const Body& body) {
#if defined(__SANITIZE_THREAD__)
  // The best: the others share its threads and take minutes there.
  const std::vector<std::string> names{instruction_sets().front()};
#else
  const std::vector<std::string> names = instruction_sets();
#endif
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    force_instruction_set(name);
    body();
    if (::testing::Test::HasFatalFailure()) break;
  }
  force_instruction_set("");
}

}  // namespace smyrf::testing
