// What the plug-in calls of its host: functions of ggml, found in the module that loads the
// plug-in.
#pragma once

#include <string>

#include "ggml-backend.h"
#include "ggml.h"

namespace smyrf::ggml {

/// Functions of the host's own ggml. The plug-in links none of it: a host may hold ggml in itself,
/// as Python wheels do, where the dynamic linker would not find it.
struct Host {
  decltype(&::ggml_version) version = nullptr;
  decltype(&::ggml_op_name) op_name = nullptr;
  decltype(&::ggml_type_name) type_name = nullptr;
  decltype(&::ggml_tensor_overhead) tensor_overhead = nullptr;
  decltype(&::ggml_graph_n_nodes) graph_n_nodes = nullptr;
  decltype(&::ggml_graph_node) graph_node = nullptr;
  decltype(&::ggml_backend_cpu_buffer_type) cpu_buffer_type = nullptr;
  decltype(&::ggml_backend_cpu_buffer_from_ptr) cpu_buffer_from_ptr = nullptr;
  decltype(&::ggml_backend_buft_is_host) buft_is_host = nullptr;
  /// May be missing; messages go to stderr then.
  void (*log)(enum ggml_log_level level, const char* format, ...) = nullptr;
};

/// Finds the functions in the module that holds `address` and in what it is linked with. Returns an
/// empty string, or why this host can't be served, in one sentence.
std::string FindHost(const void* address);

const Host& TheHost();

/// One line through the host's log, with the plug-in's name in front. Throws nothing.
void LogError(const char* text);

}  // namespace smyrf::ggml
