// A host for tests: the functions of ggml that the plug-in looks up, made up and under control.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml.h"

/// ggml leaves open what a graph is.
struct ggml_cgraph {
  std::vector<ggml_tensor*> nodes;
};

namespace smyrf::ggml::testing {

struct FakeHost {
  std::string version = SMYRF_GGML_VERSION ".0";
  std::size_t tensor_overhead = sizeof(ggml_tensor) + 32;
  ggml_op renamed = GGML_OP_COUNT;  ///< the operation that has another name
  std::string log;                  ///< what the plug-in logged
};
FakeHost& TheFakeHost();

/// Loads the plug-in, once, and has it begin anew. Returns its registry entry, or nullptr with the
/// reason in the host's log.
ggml_backend_reg_t Load();

/// Loads the plug-in from another module of the process, which has a ggml of its own.
bool LoadInSecondHost();

/// From now on the allocation after `count` others fails, in any thread; negative: none.
void FailAllocationAfter(std::int64_t count);

}  // namespace smyrf::ggml::testing
