// The C interface over the public C++ API. Every function runs in Guarded, so that no exception
// leaves the library; every struct is read by Known, which looks at its size.
#include "smyrf/c/smyrf.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "call.h"
#include "guard.h"
#include "smyrf/methods.h"
#include "smyrf/smyrf.h"

namespace smyrf::c {
namespace {

// Behind the last field lies nothing: a newer field would be read where an older program has only
// padding.
template <class T, class Field>
constexpr bool EndsWith(Field T::* /*last*/, std::size_t offset) {
  return offset + sizeof(Field) == sizeof(T);
}
static_assert(EndsWith(&smyrf_tensor::strides, offsetof(smyrf_tensor, strides)));
static_assert(EndsWith(&smyrf_thread_pool::run, offsetof(smyrf_thread_pool, run)));
static_assert(EndsWith(&smyrf_call::workspace, offsetof(smyrf_call, workspace)));
static_assert(EndsWith(&smyrf_outputs::plan, offsetof(smyrf_outputs, plan)));
static_assert(EndsWith(&smyrf_backward::grad_value, offsetof(smyrf_backward, grad_value)));
static_assert(EndsWith(&smyrf_plan_info::seed, offsetof(smyrf_plan_info, seed)));
static_assert(EndsWith(&smyrf_summary::execution_seconds,
                       offsetof(smyrf_summary, execution_seconds)));
static_assert(EndsWith(&smyrf_head::non_finite, offsetof(smyrf_head, non_finite)));
static_assert(SMYRF_FLOAT32 == static_cast<int>(DType::kFloat32));
static_assert(SMYRF_FLOAT16 == static_cast<int>(DType::kFloat16));
static_assert(SMYRF_BFLOAT16 == static_cast<int>(DType::kBFloat16));
static_assert(SMYRF_BOOL == static_cast<int>(DType::kBool));

void Attention(const smyrf_call* given, const smyrf_outputs* outputs_given) {
  const auto outputs = Known(outputs_given, "outputs", offsetof(smyrf_outputs, lse));
  if (outputs.plan != nullptr) *outputs.plan = nullptr;
  const Call call(given);
  // Allocated before anything is written.
  auto kept = outputs.plan != nullptr ? MakeHandle<smyrf_plan>() : nullptr;
  Outputs to{.out = Writable(outputs.out, "out")};
  if (outputs.lse != nullptr) to.lse = Writable(outputs.lse, "lse");
  if (outputs.statistics != nullptr) to.statistics = &outputs.statistics->statistics;
  if (kept != nullptr && call.plan == nullptr) to.plan = &kept->plan;
  if (kept != nullptr && call.plan != nullptr) kept->plan = *call.plan;
  smyrf::attention(call.arguments, call.options, to, call.plan);
  if (kept != nullptr) *outputs.plan = kept.release();
}

void Backward(const smyrf_call* given, const smyrf_backward* backward_given) {
  const auto backward = Known(backward_given, "backward", sizeof(smyrf_backward));
  const Call call(given);
  smyrf::attention_backward(
      call.arguments, call.options, Readable(backward.out, "out"), Readable(backward.lse, "lse"),
      Readable(backward.grad_out, "grad_out"), Optional(backward.grad_lse, "grad_lse"),
      {Writable(backward.grad_query, "grad_query"), Writable(backward.grad_key, "grad_key"),
       Writable(backward.grad_value, "grad_value")},
      call.plan);
}

void CheckHead(std::int64_t batch_index, std::int64_t query_head, std::int64_t batch,
               std::int64_t query_heads) {
  if (batch_index >= 0 && batch_index < batch && query_head >= 0 && query_head < query_heads) {
    return;
  }
  Refuse("head", "got (" + std::to_string(batch_index) + ", " + std::to_string(query_head) +
                     "), expected less than (" + std::to_string(batch) + ", " +
                     std::to_string(query_heads) + ") = (batch, query heads)");
}

smyrf_plan_info InfoOf(const PlanInfo& info) {
  smyrf_plan_info result{};
  result.method = smyrf::name(info.method);
  result.reason = info.reason.c_str();
  result.precision = smyrf::name(info.precision);
  result.batch = info.batch;
  result.query_heads = info.query_heads;
  result.key_heads = info.key_heads;
  result.queries = info.queries;
  result.keys = info.keys;
  result.depth = info.depth;
  result.is_causal = info.is_causal ? 1 : 0;
  result.has_attn_mask = info.has_attn_mask ? 1 : 0;
  result.has_window = info.window ? 1 : 0;
  result.has_positions = info.positions ? 1 : 0;
  result.has_max_density = info.max_density ? 1 : 0;
  result.has_scale = info.scale ? 1 : 0;
  const Window window = info.window.value_or(Window{});
  result.window[0] = window.left;
  result.window[1] = window.right;
  const Positions positions = info.positions.value_or(Positions{});
  result.positions[0] = positions.first_query;
  result.positions[1] = positions.first_key;
  result.n_hashes = info.n_hashes;
  result.cluster_size = info.cluster_size;
  result.tolerance = info.tolerance;
  result.max_density = info.max_density.value_or(0.0);
  result.scale = info.scale.value_or(0.0);
  result.seed = info.seed;
  return result;
}

void ToBytes(const smyrf_plan* plan, void* buffer, std::size_t* size) {
  Need(plan, "plan");
  Need(size, "size");
  const std::string bytes = plan->plan.to_bytes();
  if (buffer != nullptr && *size < bytes.size()) {
    Refuse("buffer", "got " + std::to_string(*size) + " bytes, the plan needs " +
                         std::to_string(bytes.size()));
  }
  if (buffer != nullptr) std::memcpy(buffer, bytes.data(), bytes.size());
  *size = bytes.size();
}

/// Takes a handle back, null included.
template <class T>
void Free(T* handle) noexcept {
  const std::unique_ptr<T> taken(handle);
}

/// Text of an entry of a list, null behind its end.
template <class Entry>
const char* TextOf(const Entry& entry) noexcept {
  const char* text = nullptr;
  Guarded([&] { text = entry(); });
  return text;
}

}  // namespace
}  // namespace smyrf::c

using namespace smyrf::c;  // NOLINT(google-build-using-namespace)

extern "C" {

const char* smyrf_last_error(void) { return last_error.data(); }

const char* smyrf_version(void) { return SMYRF_VERSION_STRING; }

const char* smyrf_method_name(size_t index) {
  return TextOf(
      [&] { return index < smyrf::methods().size() ? smyrf::methods()[index]->name : nullptr; });
}

const char* smyrf_method_summary(size_t index) {
  return TextOf(
      [&] { return index < smyrf::methods().size() ? smyrf::methods()[index]->summary : nullptr; });
}

const char* smyrf_instruction_set(size_t index) {
  return TextOf([&] {
    static const std::vector<std::string> sets = smyrf::instruction_sets();
    return index < sets.size() ? sets[index].c_str() : nullptr;
  });
}

smyrf_status smyrf_force_instruction_set(const char* name) {
  return Guarded([&] { smyrf::force_instruction_set(name != nullptr ? name : ""); });
}

smyrf_status smyrf_attention(const smyrf_call* call, const smyrf_outputs* outputs) {
  return Guarded([&] { Attention(call, outputs); });
}

smyrf_status smyrf_attention_backward(const smyrf_call* call, const smyrf_backward* backward) {
  return Guarded([&] { Backward(call, backward); });
}

smyrf_status smyrf_estimate(const smyrf_call* call, smyrf_statistics* statistics) {
  return Guarded([&] {
    Need(statistics, "statistics");
    const Call known(call);
    known.NeedNoPlan();
    statistics->statistics = smyrf::estimate(known.arguments, known.options);
  });
}

smyrf_status smyrf_merge(const smyrf_tensor* out, const smyrf_tensor* lse,
                         const smyrf_tensor* other_out, const smyrf_tensor* other_lse,
                         int64_t num_threads, const smyrf_thread_pool* thread_pool) {
  return Guarded([&] {
    std::optional<HostPool> pool;
    if (thread_pool != nullptr) pool.emplace(thread_pool);
    smyrf::merge(Writable(out, "out"), Writable(lse, "lse"), Readable(other_out, "other_out"),
                 Readable(other_lse, "other_lse"), Threads(num_threads), pool ? &*pool : nullptr);
  });
}

smyrf_status smyrf_make_plan(const smyrf_call* call, smyrf_plan** plan) {
  return Guarded([&] {
    GiveHandle(plan, "plan", [&] {
      const Call known(call, false);
      known.NeedNoPlan();
      return MakeHandle<smyrf_plan>(smyrf::plan(known.arguments, known.options));
    });
  });
}

smyrf_status smyrf_plan_get_info(const smyrf_plan* plan, smyrf_plan_info* info) {
  return Guarded([&] {
    Need(plan, "plan");
    Give(InfoOf(plan->plan.info()), info, "info");
  });
}

smyrf_status smyrf_plan_density(const smyrf_plan* plan, int64_t batch_index, int64_t query_head,
                                double* density) {
  return Guarded([&] {
    Need(plan, "plan");
    Need(density, "density");
    const smyrf::PlanInfo& info = plan->plan.info();
    CheckHead(batch_index, query_head, info.batch, info.query_heads);
    *density = plan->plan.density(batch_index, query_head);
  });
}

smyrf_status smyrf_plan_save(const smyrf_plan* plan, const char* path) {
  return Guarded([&] {
    Need(plan, "plan");
    Need(path, "path");
    plan->plan.save(path);
  });
}

smyrf_status smyrf_plan_load(const char* path, smyrf_plan** plan) {
  return Guarded([&] {
    GiveHandle(plan, "plan", [&] {
      Need(path, "path");
      return MakeHandle<smyrf_plan>(smyrf::Plan::load(path));
    });
  });
}

smyrf_status smyrf_plan_to_bytes(const smyrf_plan* plan, void* buffer, size_t* size) {
  return Guarded([&] { ToBytes(plan, buffer, size); });
}

smyrf_status smyrf_plan_from_bytes(const void* bytes, size_t size, smyrf_plan** plan) {
  return Guarded([&] {
    GiveHandle(plan, "plan", [&] {
      Need(bytes, "bytes");
      const std::string_view view(static_cast<const char*>(bytes), size);
      return MakeHandle<smyrf_plan>(smyrf::Plan::from_bytes(view));
    });
  });
}

void smyrf_plan_free(smyrf_plan* plan) { Free(plan); }

smyrf_status smyrf_statistics_create(smyrf_statistics** statistics) {
  return Guarded(
      [&] { GiveHandle(statistics, "statistics", [] { return MakeHandle<smyrf_statistics>(); }); });
}

smyrf_status smyrf_statistics_summary(const smyrf_statistics* statistics, smyrf_summary* summary) {
  return Guarded([&] {
    Need(statistics, "statistics");
    const smyrf::Statistics& from = statistics->statistics;
    Give(smyrf_summary{0, smyrf::name(from.method), from.reason.c_str(),
                       from.instruction_set.c_str(), from.batch, from.query_heads,
                       from.planning_seconds, from.execution_seconds},
         summary, "summary");
  });
}

smyrf_status smyrf_statistics_head(const smyrf_statistics* statistics, int64_t batch_index,
                                   int64_t query_head, smyrf_head* head) {
  return Guarded([&] {
    Need(statistics, "statistics");
    const smyrf::Statistics& all = statistics->statistics;
    CheckHead(batch_index, query_head, all.batch, all.query_heads);
    const smyrf::Statistics::Head& from =
        all.heads.at(static_cast<std::size_t>(batch_index * all.query_heads + query_head));
    Give(smyrf_head{0, from.density, from.seconds, from.planning_seconds,
                    smyrf::name(from.precision), from.expected_error, from.expected_lse_error,
                    from.expected_work, from.dense ? 1 : 0, from.non_finite ? 1 : 0},
         head, "head");
  });
}

void smyrf_statistics_free(smyrf_statistics* statistics) { Free(statistics); }

smyrf_status smyrf_workspace_create(smyrf_workspace** workspace) {
  return Guarded(
      [&] { GiveHandle(workspace, "workspace", [] { return MakeHandle<smyrf_workspace>(); }); });
}

smyrf_status smyrf_workspace_bytes(const smyrf_workspace* workspace, int64_t* bytes) {
  return Guarded([&] {
    Need(workspace, "workspace");
    Need(bytes, "bytes");
    *bytes = workspace->workspace.bytes();
  });
}

smyrf_status smyrf_workspace_clear(smyrf_workspace* workspace) {
  return Guarded([&] {
    Need(workspace, "workspace");
    workspace->workspace.clear();
  });
}

void smyrf_workspace_free(smyrf_workspace* workspace) { Free(workspace); }

}  // extern "C"
