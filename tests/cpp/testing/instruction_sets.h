// Runs a test's body once for every instruction set of the machine.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "smyrf/attention.h"

namespace smyrf::testing {

template <class Body>
void OnInstructionSets(const std::vector<std::string>& names, const Body& body) {
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    force_instruction_set(name);
    body();
    if (::testing::Test::HasFatalFailure()) break;
  }
  force_instruction_set("");
}

template <class Body>
void ForEachInstructionSet(const Body& body) {
#if defined(__SANITIZE_THREAD__)
  // The best: the others share its threads and take minutes there.
  OnInstructionSets({instruction_sets().front()}, body);
#else
  OnInstructionSets(instruction_sets(), body);
#endif
}

/// Without the last, which stands for no vectors, where the address sanitizer makes it slow: for
/// calls that other tests make on it there.
template <class Body>
void ForEachQuickInstructionSet(const Body& body) {
#if defined(__SANITIZE_ADDRESS__)
  std::vector<std::string> names = instruction_sets();
  if (names.size() > 1) names.pop_back();
  OnInstructionSets(names, body);
#else
  ForEachInstructionSet(body);
#endif
}

}  // namespace smyrf::testing
