// The default pool of the library: threads of OpenMP, those that the program has already where it
// uses OpenMP itself.
#include <algorithm>
#include <memory>

#include "base/lost_pool.h"
#include "base/thread_team.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace smyrf {
namespace {

class OpenMpPool : public ThreadPool {
 public:
  int size() const override {
#if defined(_OPENMP)
    if (!PoolIsLost()) return omp_get_max_threads();
#endif
    return 1;
  }

  void run([[maybe_unused]] int threads, const std::function<void()>& work) override {
#if defined(_OPENMP)
    const int most =
        PoolIsLost() ? 1 : std::min(threads, kThreadsPerProcessor * omp_get_num_procs());
#pragma omp parallel num_threads(most) if (most > 1)
#endif
    work();
  }
};

}  // namespace

ThreadPool& default_thread_pool() {
  // Never destroyed: when a program ends, another of its threads may still compute.
  static ThreadPool& pool = *std::make_unique<OpenMpPool>().release();
  return pool;
}

}  // namespace smyrf
