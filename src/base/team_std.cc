// The default pool of plug-ins: threads of the standard library, for a host whose own threads want
// the same cores.
#include "base/thread_team.h"

namespace smyrf {

ThreadPool& default_thread_pool() {
  // Never destroyed: when a program ends, another of its threads may still compute.
  static ThreadPool& pool =
      *StandardThreads(Processors(), kThreadsPerProcessor * Processors()).release();
  return pool;
}

}  // namespace smyrf
