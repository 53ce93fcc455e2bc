#include "fake_host.h"

#include <dlfcn.h>

#include <array>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

namespace {

std::atomic<std::int64_t> allocations_left{-1};
std::mutex log_mutex;

bool Fails() {
  if (allocations_left < 0) return false;
  return allocations_left-- == 0;
}

}  // namespace

// The plug-in's allocations come here: a program's operator new goes before the libraries'. Out of
// line: where both are inlined, GCC takes them for a pair that does not match.
// NOLINTBEGIN(cppcoreguidelines-no-malloc)
[[gnu::noinline]] void* operator new(std::size_t size) {
  void* memory = Fails() ? nullptr : std::malloc(size > 0 ? size : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t& /*tag*/) noexcept {
  return Fails() ? nullptr : std::malloc(size > 0 ? size : 1);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t /*size*/) noexcept {
  std::free(memory);
}
// NOLINTEND(cppcoreguidelines-no-malloc)

namespace smyrf::ggml::testing {

FakeHost& TheFakeHost() {
  static FakeHost host;
  return host;
}

namespace {

ggml_backend_init_t Initialiser() {
  static void* plugin = dlopen(SMYRF_GGML_PLUGIN, RTLD_NOW | RTLD_LOCAL);
  if (plugin == nullptr) {
    TheFakeHost().log = dlerror();
    return nullptr;
  }
  return reinterpret_cast<ggml_backend_init_t>(dlsym(plugin, "ggml_backend_init"));
}

}  // namespace

ggml_backend_reg_t Load() {
  const ggml_backend_init_t initialise = Initialiser();
  return initialise == nullptr ? nullptr : initialise();
}

bool LoadInSecondHost() {
  static void* second = dlopen(SMYRF_GGML_SECOND_HOST, RTLD_NOW | RTLD_LOCAL);
  if (second == nullptr) {
    TheFakeHost().log = dlerror();
    return true;
  }
  return reinterpret_cast<bool (*)(ggml_backend_init_t)>(dlsym(second, "smyrf_test_load"))(
      Initialiser());
}

void FailAllocationAfter(std::int64_t count) { allocations_left = count; }

}  // namespace smyrf::ggml::testing

using smyrf::ggml::testing::TheFakeHost;

extern "C" {

const char* ggml_version() { return TheFakeHost().version.c_str(); }
size_t ggml_tensor_overhead() { return TheFakeHost().tensor_overhead; }

const char* ggml_op_name(ggml_op op) {
  if (op == TheFakeHost().renamed) return "ANOTHER";
  switch (op) {
    case GGML_OP_NONE:
      return "NONE";
    case GGML_OP_RESHAPE:
      return "RESHAPE";
    case GGML_OP_VIEW:
      return "VIEW";
    case GGML_OP_PERMUTE:
      return "PERMUTE";
    case GGML_OP_TRANSPOSE:
      return "TRANSPOSE";
    case GGML_OP_FLASH_ATTN_EXT:
      return "FLASH_ATTN_EXT";
    default:
      return "UNKNOWN";
  }
}

const char* ggml_type_name(ggml_type type) {
  return type == GGML_TYPE_F32 ? "f32" : type == GGML_TYPE_F16 ? "f16" : "bf16";
}

// ggml declares them so.
// NOLINTBEGIN(misc-const-correctness)
int ggml_graph_n_nodes(ggml_cgraph* graph) { return static_cast<int>(graph->nodes.size()); }
ggml_tensor* ggml_graph_node(ggml_cgraph* graph, int i) {
  return graph->nodes[static_cast<std::size_t>(i)];
}
// NOLINTEND(misc-const-correctness)

ggml_backend_buffer_type_t ggml_backend_cpu_buffer_type() {
  static ggml_backend_buffer_type type{};
  return &type;
}
ggml_backend_buffer_t ggml_backend_cpu_buffer_from_ptr(void* data, size_t size) {
  static ggml_backend_buffer buffer{};
  buffer.context = data;
  buffer.size = size;
  return &buffer;
}
bool ggml_backend_buft_is_host(ggml_backend_buffer_type_t type) {
  return type == ggml_backend_cpu_buffer_type();
}

// Calls an initialiser from this module; the comparison keeps it from being a tail call.
bool smyrf_test_load(ggml_backend_init_t init) { return init() != nullptr; }

void ggml_log_internal(ggml_log_level /*level*/, const char* format, ...) {
  std::array<char, 500> text{};
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text.data(), text.size(), format, arguments);
  va_end(arguments);
  const std::scoped_lock lock(log_mutex);
  TheFakeHost().log += text.data();
}
}  // extern "C"
