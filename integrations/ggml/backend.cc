// The plug-in as ggml sees it: a registry entry with one device of type ACCEL, whose backend
// computes GGML_OP_FLASH_ATTN_EXT in the host's memory and leaves all else to ggml's CPU backend.
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include "attention.h"
#include "base/message.h"
#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "host.h"
#include "settings.h"

namespace smyrf::ggml {
namespace {

ggml_backend_reg_t Registry();

bool IsView(const ggml_tensor& node) {
  return node.op == GGML_OP_NONE || node.op == GGML_OP_RESHAPE || node.op == GGML_OP_VIEW ||
         node.op == GGML_OP_PERMUTE || node.op == GGML_OP_TRANSPOSE;
}

// The backend.

struct Context {
  int num_threads = 0;
};

Context& ContextOf(ggml_backend_t backend) { return *static_cast<Context*>(backend->context); }

ggml_status Compute(ggml_backend_t backend, ggml_cgraph* graph) {
  const Context& context = ContextOf(backend);
  try {
    const Settings settings = CurrentSettings();
    const int count = TheHost().graph_n_nodes(graph);
    for (int i = 0; i < count; ++i) {
      const ggml_tensor& node = *TheHost().graph_node(graph, i);
      if ((node.flags & GGML_TENSOR_FLAG_COMPUTE) == 0 || IsView(node)) continue;
      if (!Takes(node)) {
        LogError(Message("got an operation ", TheHost().op_name(node.op), " that it doesn't take")
                     .c_str());
        return GGML_STATUS_FAILED;
      }
      Attend(node, settings, context.num_threads);
    }
    return GGML_STATUS_SUCCESS;
  } catch (const std::bad_alloc&) {
    LogError("not enough memory for attention");
    return GGML_STATUS_ALLOC_FAILED;
  } catch (const std::exception& error) {
    LogError(error.what());
    return GGML_STATUS_FAILED;
  }
}

void Free(ggml_backend_t backend) {
  const std::unique_ptr<ggml_backend> owner(backend);
  const std::unique_ptr<Context> context(&ContextOf(backend));
  WriteSummary();
}

ggml_guid_t Guid() {
  static ggml_guid guid = {0x5d, 0x0b, 0x2f, 0x61, 0x8e, 0x47, 0x4c, 0x1a,
                           0x93, 0xd4, 0x70, 0xe8, 0x26, 0xbc, 0x15, 0xf9};
  return &guid;
}

ggml_backend_t NewBackend(ggml_backend_dev_t device, const char* /*parameters*/) try {
  ggml_backend_i interface{};
  interface.get_name = [](ggml_backend_t) { return "smyrf"; };
  interface.free = Free;
  interface.graph_compute = Compute;
  auto context = std::make_unique<Context>();
  auto backend =
      std::make_unique<ggml_backend>(ggml_backend{Guid(), interface, device, context.get()});
  // NOLINTNEXTLINE(bugprone-unused-return-value): the backend has it
  static_cast<void>(context.release());
  return backend.release();
} catch (const std::bad_alloc&) {
  LogError("not enough memory for a backend");
  return nullptr;
}

void SetThreads(ggml_backend_t backend, int num_threads) {
  ContextOf(backend).num_threads = num_threads;
}

// The device.

template <class Capabilities>
void SetCapabilities(Capabilities& capabilities) {
  capabilities.buffer_from_host_ptr = true;
  // Not in every version of ggml.
  if constexpr (requires { capabilities.mmap_support; }) capabilities.mmap_support = true;
}

void Properties(ggml_backend_dev_t device, ggml_backend_dev_props* properties) {
  *properties = {};
  properties->name = device->iface.get_name(device);
  properties->description = device->iface.get_description(device);
  properties->type = GGML_BACKEND_DEVICE_TYPE_ACCEL;
  SetCapabilities(properties->caps);
}

ggml_backend_device_i DeviceInterface() {
  ggml_backend_device_i interface{};
  interface.get_name = [](ggml_backend_dev_t) { return "smyrf"; };
  interface.get_description = [](ggml_backend_dev_t) { return "attention for long sequences"; };
  interface.get_memory = [](ggml_backend_dev_t, size_t* free, size_t* total) {
    *free = *total = 0;
  };
  interface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; };
  interface.get_props = Properties;
  interface.init_backend = NewBackend;
  interface.get_buffer_type = [](ggml_backend_dev_t) { return TheHost().cpu_buffer_type(); };
  interface.buffer_from_host_ptr = [](ggml_backend_dev_t, void* data, size_t size, size_t) {
    return TheHost().cpu_buffer_from_ptr(data, size);
  };
  interface.supports_op = [](ggml_backend_dev_t, const ggml_tensor* node) {
    return IsView(*node) || Takes(*node);
  };
  interface.supports_buft = [](ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
    return TheHost().buft_is_host(type);
  };
  return interface;
}

// The registry entry.

ggml_backend_dev_t Device(ggml_backend_reg_t registry, size_t index) {
  static ggml_backend_device device{DeviceInterface(), registry, nullptr};
  return index == 0 ? &device : nullptr;
}

void* ProcAddress(ggml_backend_reg_t /*registry*/, const char* name) {
  const auto is = [&](const char* known) { return std::strcmp(name, known) == 0; };
  if (is("ggml_backend_set_n_threads")) return reinterpret_cast<void*>(SetThreads);
  if (is("smyrf_set_method")) return reinterpret_cast<void*>(SetMethod);
  if (is("smyrf_set_tolerance")) return reinterpret_cast<void*>(SetTolerance);
  if (is("smyrf_set_log")) return reinterpret_cast<void*>(SetLog);
  return nullptr;
}

ggml_backend_reg_t Registry() {
  static ggml_backend_reg registry{
      GGML_BACKEND_API_VERSION,
      {[](ggml_backend_reg_t) { return "smyrf"; }, [](ggml_backend_reg_t) { return size_t{1}; },
       Device, ProcAddress},
      nullptr};
  return &registry;
}

}  // namespace
}  // namespace smyrf::ggml

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init() try {
  std::string wrong = smyrf::ggml::FindHost(__builtin_return_address(0));
  if (wrong.empty()) wrong = smyrf::ggml::ReadSettings();
  if (wrong.empty()) return smyrf::ggml::Registry();
  smyrf::ggml::LogError(wrong.c_str());
  return nullptr;
} catch (const std::bad_alloc&) {
  smyrf::ggml::LogError("not enough memory to load");
  return nullptr;
}
