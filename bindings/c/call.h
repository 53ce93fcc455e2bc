// A call's structs as the C++ API takes them. Every check of content is the core's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "guard.h"
#include "smyrf/c/smyrf.h"
#include "smyrf/methods.h"
#include "smyrf/smyrf.h"

struct smyrf_plan {
  smyrf::Plan plan;
};
struct smyrf_statistics {
  smyrf::Statistics statistics;
};
struct smyrf_workspace {
  smyrf::Workspace workspace;
};

namespace smyrf::c {

inline MutableTensorView Writable(const smyrf_tensor* given, const char* name) {
  const auto tensor = Known(given, name, sizeof(smyrf_tensor));
  if (tensor.dtype < SMYRF_FLOAT32 || tensor.dtype > SMYRF_BOOL) {
    Refuse(name,
           "got dtype number " + std::to_string(tensor.dtype) +
               ", accepted are SMYRF_FLOAT32, SMYRF_FLOAT16, SMYRF_BFLOAT16 and SMYRF_BOOL",
           ErrorKind::kType);
  }
  if (tensor.rank < 0 || tensor.rank > 4) {
    Refuse(name, "got rank " + std::to_string(tensor.rank) + ", accepted are 0 to 4",
           ErrorKind::kType);
  }
  MutableTensorView view{tensor.data, static_cast<DType>(tensor.dtype), tensor.rank, {}, {}};
  std::copy_n(tensor.shape, tensor.rank, view.shape.begin());
  std::copy_n(tensor.strides, tensor.rank, view.strides.begin());
  return view;
}

inline TensorView Readable(const smyrf_tensor* given, const char* name) {
  const MutableTensorView view = Writable(given, name);
  return {view.data, view.dtype, view.rank, view.shape, view.strides};
}

inline std::optional<TensorView> Optional(const smyrf_tensor* given, const char* name) {
  return given != nullptr ? std::optional(Readable(given, name)) : std::nullopt;
}

template <class T>
std::optional<T> Optional(const T* given) {
  return given != nullptr ? std::optional(*given) : std::nullopt;
}

/// Other numbers come from memory that was never set.
inline bool Flag(std::int32_t value, const char* name) {
  if (value != 0 && value != 1) {
    Refuse(name, "got " + std::to_string(value) + ", accepted are 0 and 1");
  }
  return value == 1;
}

inline int Threads(std::int64_t value) {
  if (!std::in_range<int>(value) || value < 0) {
    Refuse("num_threads", "got " + std::to_string(value) +
                              ", accepted are 1 and more, or 0 for the thread pool's size");
  }
  return static_cast<int>(value);
}

inline Method MethodOf(const char* name) {
  if (name == nullptr) return Options{}.method;
  if (const auto method = smyrf::method_named(name)) return *method;
  std::string accepted;
  for (const MethodInfo* info : smyrf::methods()) {
    accepted += (accepted.empty() ? "" : ", ") + std::string(info->name);
  }
  Refuse("method", "got '" + std::string(name).substr(0, 100) + "', accepted are " + accepted);
}

inline Precision PrecisionOf(const char* name) {
  if (name == nullptr) return Options{}.precision;
  if (const auto precision = smyrf::precision_named(name)) return *precision;
  Refuse("precision", "got '" + std::string(name).substr(0, 100) +
                          "', accepted are auto, float32, int16 and int8");
}

/// The program's threads. What its callbacks do wrong ends the call, and not the program.
class HostPool final : public ThreadPool {
 public:
  explicit HostPool(const smyrf_thread_pool* given)
      : pool_(Known(given, "thread_pool", sizeof(smyrf_thread_pool))) {
    if (pool_.size == nullptr || pool_.run == nullptr) {
      Refuse("thread_pool", "size and run must both be given");
    }
  }

  int size() const override {
    return Asked("size", [&] { return pool_.size(pool_.user); });
  }
  void run(int threads, const std::function<void()>& work) override {
    // C has no pointer to constant memory that a callback may hand on as `void*`.
    void* const argument = const_cast<std::function<void()>*>(&work);
    const int failed = Asked("run", [&] { return pool_.run(pool_.user, threads, Work, argument); });
    if (failed == 0) return;
    throw std::runtime_error("thread_pool: run gave " + std::to_string(failed) +
                             ", expected 0; outputs are not complete");
  }

 private:
  static void Work(void* argument) noexcept {
    (*static_cast<const std::function<void()>*>(argument))();
  }

  /// A program in C++ may throw from its callback.
  template <class Callback>
  static int Asked(const char* name, const Callback& callback) {
    std::string what = "an exception";
    try {
      return callback();
    } catch (const std::exception& error) {
      what = error.what();
    } catch (...) {
      what += " of an unknown type";
    }
    throw std::runtime_error("thread_pool: " + std::string(name) + " threw: " + what);
  }

  smyrf_thread_pool pool_;
};

/// A smyrf_call as the C++ API takes it. The options point to the pool, so it stays where it is.
class Call {
 public:
  explicit Call(const smyrf_call* given, bool needs_value = true) {
    const auto call = Known(given, "call", offsetof(smyrf_call, attn_mask));
    arguments.query = Readable(call.query, "query");
    arguments.key = Readable(call.key, "key");
    if (needs_value || call.value != nullptr) arguments.value = Readable(call.value, "value");
    arguments.attn_mask = Optional(call.attn_mask, "attn_mask");
    arguments.key_padding_mask = Optional(call.key_padding_mask, "key_padding_mask");
    arguments.query_padding_mask = Optional(call.query_padding_mask, "query_padding_mask");
    options.method = MethodOf(call.method);
    options.is_causal = Flag(call.is_causal, "is_causal");
    options.enable_gqa = Flag(call.enable_gqa, "enable_gqa");
    if (call.window != nullptr) options.window = Window{call.window[0], call.window[1]};
    if (call.positions != nullptr) {
      options.positions = Positions{call.positions[0], call.positions[1]};
    }
    options.scale = Optional(call.scale);
    options.n_hashes = Optional(call.n_hashes);
    options.cluster_size = Optional(call.cluster_size);
    options.tolerance = Optional(call.tolerance);
    options.max_density = Optional(call.max_density);
    options.precision = PrecisionOf(call.precision);
    options.dropout_p = call.dropout_p;
    options.seed = call.seed;
    options.num_threads = Threads(call.num_threads);
    if (call.thread_pool != nullptr) options.thread_pool = &pool_.emplace(call.thread_pool);
    if (call.workspace != nullptr) options.workspace = &call.workspace->workspace;
    if (call.plan != nullptr) plan = &call.plan->plan;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  Call(Call&&) = delete;
  Call& operator=(Call&&) = delete;
  ~Call() = default;

  void NeedNoPlan() const {
    if (plan != nullptr) Refuse("plan", "this function makes its own; set call->plan to NULL");
  }

  Arguments arguments;
  Options options;
  const Plan* plan = nullptr;

 private:
  std::optional<HostPool> pool_;
};

}  // namespace smyrf::c
