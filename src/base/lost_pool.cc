#include "base/lost_pool.h"

#include <atomic>

#if defined(__linux__)
#include <pthread.h>
#include <sys/stat.h>
#endif

namespace smyrf {
namespace {

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

bool PoolIsLost() { return pool_is_lost; }

}  // namespace smyrf
