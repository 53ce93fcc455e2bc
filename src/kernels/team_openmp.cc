// Threads of OpenMP: those that the program has already, where it is PyTorch.
#include <algorithm>
#include <atomic>

#include "kernels/team.h"

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

int TeamSize([[maybe_unused]] int asked) {
#if defined(_OPENMP)
  if (!pool_is_lost) return std::min(asked, kThreadsPerProcessor * omp_get_num_procs());
#endif
  return 1;
}

void RunTeam([[maybe_unused]] int threads, const std::function<void()>& work) {
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
#endif
  work();
}

}  // namespace smyrf
