#include "base/parallel.h"

#include <atomic>
#include <exception>

#include "base/workspace.h"

namespace smyrf::parallel {

void ForOnThreads(std::int64_t count, const Run& run, const AnyBody& body) {
  const kernels::ThreadMemory* caller = &kernels::ThreadMemory::Current();
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  std::atomic<std::int64_t> next{0};
  const auto work = [&]() noexcept {
    try {
      const FloatEnvironment environment;
      const WorkspaceUse use(run.workspace, caller);
      for (std::int64_t i = next++; i < count && !failed; i = next++) body.call(body.body, i);
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  };
  // One pointer, which std::function holds without allocating.
  run.pool->run(static_cast<int>(std::min<std::int64_t>(run.threads, count)), [&work] { work(); });
  work();  // what a pool has left undone
  if (failure) std::rethrow_exception(failure);
}

}  // namespace smyrf::parallel
