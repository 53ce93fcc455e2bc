#include "host.h"

#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "base/message.h"

namespace smyrf::ggml {
namespace {

Host the_host;

template <class Function>
bool Find(void* module, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(module, name));
  return function != nullptr;
}

/// Why the host's structures are not those that this was compiled with; empty if they are.
std::string CheckVersion(const Host& host) {
  // Before 1.0 a minor release may change structures.
  const std::string version = host.version();
  if (!version.starts_with(SMYRF_GGML_VERSION ".")) {
    return Message("this build of the plug-in is for ggml " SMYRF_GGML_VERSION ", the host has ",
                   version, "; build the plug-in with the host's headers");
  }
  // Numbers of operations and types, and the size of a tensor, have changed between versions.
  constexpr std::array<std::pair<ggml_op, const char*>, 6> kOps{{
      {GGML_OP_NONE, "NONE"},
      {GGML_OP_RESHAPE, "RESHAPE"},
      {GGML_OP_VIEW, "VIEW"},
      {GGML_OP_PERMUTE, "PERMUTE"},
      {GGML_OP_TRANSPOSE, "TRANSPOSE"},
      {GGML_OP_FLASH_ATTN_EXT, "FLASH_ATTN_EXT"},
  }};
  constexpr std::array<std::pair<ggml_type, const char*>, 3> kTypes{{
      {GGML_TYPE_F32, "f32"},
      {GGML_TYPE_F16, "f16"},
      {GGML_TYPE_BF16, "bf16"},
  }};
  bool same = host.tensor_overhead() >= sizeof(ggml_tensor) &&
              host.tensor_overhead() < sizeof(ggml_tensor) + 64;
  for (const auto& [op, name] : kOps) same = same && std::strcmp(host.op_name(op), name) == 0;
  for (const auto& [type, name] : kTypes)
    same = same && std::strcmp(host.type_name(type), name) == 0;
  if (!same) {
    return Message("the host's ggml ", version,
                   " numbers its operations otherwise than the headers that the plug-in was built "
                   "with; build it with the host's headers");
  }
  return {};
}

}  // namespace

const Host& TheHost() { return the_host; }

std::string FindHost(const void* address) {
  Dl_info info{};
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) {
    return "the module that loads the plug-in can't be found";
  }
  // The host's module is there already. A program is found by no name, a library by its own.
  void* module = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (module == nullptr) module = dlopen(nullptr, RTLD_LAZY);
  Host found;
  const bool all = module != nullptr && Find(module, "ggml_version", found.version) &&
                   Find(module, "ggml_op_name", found.op_name) &&
                   Find(module, "ggml_type_name", found.type_name) &&
                   Find(module, "ggml_tensor_overhead", found.tensor_overhead) &&
                   Find(module, "ggml_graph_n_nodes", found.graph_n_nodes) &&
                   Find(module, "ggml_graph_node", found.graph_node) &&
                   Find(module, "ggml_backend_cpu_buffer_type", found.cpu_buffer_type) &&
                   Find(module, "ggml_backend_cpu_buffer_from_ptr", found.cpu_buffer_from_ptr) &&
                   Find(module, "ggml_backend_buft_is_host", found.buft_is_host);
  if (!all) {
    return Message(info.dli_fname,
                   " doesn't show its ggml to plug-ins; build it with shared libraries, or link it "
                   "with -rdynamic");
  }
  Find(module, "ggml_log_internal", found.log);
  std::string wrong = CheckVersion(found);
  // A second ggml in the process must not take the functions from under the first one's backends.
  if (wrong.empty() && the_host.version != nullptr && the_host.version != found.version) {
    wrong = Message(info.dli_fname,
                    " has a ggml of its own, and another ggml of this process has the plug-in "
                    "already; load it in one of them");
  }
  if (wrong.empty()) the_host = found;
  if (the_host.log == nullptr) the_host.log = found.log;  // it says what is wrong
  return wrong;
}

void LogError(const char* text) {
  if (the_host.log != nullptr) {
    the_host.log(GGML_LOG_LEVEL_ERROR, "smyrf: %s\n", text);
  } else {
    std::fprintf(stderr, "smyrf: %s\n", text);
  }
}

}  // namespace smyrf::ggml
