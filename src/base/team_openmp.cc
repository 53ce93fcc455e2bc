// Threads of OpenMP: those that the program has already, where it uses OpenMP itself.
#include <algorithm>

#include "base/lost_pool.h"
#include "base/team.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace smyrf {

int DefaultThreads() {
#if defined(_OPENMP)
  if (!PoolIsLost()) return omp_get_max_threads();
#endif
  return 1;
}

int TeamSize([[maybe_unused]] int asked) {
#if defined(_OPENMP)
  if (!PoolIsLost()) return std::min(asked, kThreadsPerProcessor * omp_get_num_procs());
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
