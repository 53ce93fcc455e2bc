#include "kernels/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>

#include "kernels/float_environment.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <sys/stat.h>
#endif

namespace smyrf {
namespace {

#if defined(_OPENMP)
// More threads than processors only wait for each other, and where the system has no more to give
// libgomp ends the process.
constexpr int kThreadsPerProcessor = 4;
#endif

// libgomp's pool does not survive fork: a child that used it would wait forever for threads that
// exist in the parent only. The pool may be shared with another library (PyTorch's, when it was
// loaded first), so what counts is whether the parent had threads, not whether we started them.
std::atomic<bool> pool_is_lost{false};

#if defined(__linux__)
bool parent_had_threads = false;

const int fork_handlers = pthread_atfork(
    [] {
      struct stat info{};
      // A directory's link count is 2 plus its subdirectories: here one a thread.
      parent_had_threads = stat("/proc/self/task", &info) != 0 || info.st_nlink > 3;
    },
    nullptr,
    [] {
      if (parent_had_threads) pool_is_lost = true;
    });
#endif

}  // namespace

int DefaultThreads() {
#if defined(_OPENMP)
  if (!pool_is_lost) return omp_get_max_threads();
#endif
  return 1;
}

int ThreadsFor(int num_threads) { return num_threads > 0 ? num_threads : DefaultThreads(); }

void ParallelOuter(std::int64_t count, int num_threads,
                   const std::function<void(std::int64_t, int)>& body) {
  const int threads = ThreadsFor(num_threads);
  const bool outer = count >= std::int64_t{2} * threads;
  ParallelFor(count, outer ? threads : 1, [&](std::int64_t i) { body(i, outer ? 1 : threads); });
}

void ParallelRows(std::int64_t heads, std::int64_t rows, int num_threads,
                  const std::function<void(std::int64_t, std::int64_t, std::int64_t)>& body) {
  constexpr std::int64_t kTaskRows = 256;
  const std::int64_t all = heads * rows;
  ParallelFor((all + kTaskRows - 1) / kTaskRows, num_threads, [&](std::int64_t task) {
    const std::int64_t end = std::min(all, (task + 1) * kTaskRows);
    for (std::int64_t at = task * kTaskRows; at < end;) {
      const std::int64_t begin = at % rows;
      const std::int64_t last = std::min(rows, begin + end - at);
      body(at / rows, begin, last);
      at += last - begin;
    }
  });
}

void ParallelFor(std::int64_t count, [[maybe_unused]] int num_threads,
                 const std::function<void(std::int64_t)>& body) {
#if defined(_OPENMP)
  const int asked = num_threads > 0 && !pool_is_lost
                        ? std::min(num_threads, kThreadsPerProcessor * omp_get_num_procs())
                        : DefaultThreads();
  const int threads = static_cast<int>(std::min<std::int64_t>(asked, count));
  if (threads > 1) {
    std::exception_ptr failure;
    std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (std::int64_t i = 0; i < count; ++i) {
      if (failed) continue;
      try {
        const FloatEnvironment environment;
        body(i);
      } catch (...) {
        if (!failed.exchange(true)) failure = std::current_exception();
      }
    }
    if (failure) std::rethrow_exception(failure);
    return;
  }
#endif
  const FloatEnvironment environment;
  for (std::int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace smyrf
