// What carries out a call: whose threads, how many, and whose memory.
#pragma once

#include <algorithm>

#include "smyrf/threads.h"
#include "smyrf/workspace.h"

namespace smyrf {

/// Handed down through a call; cheap to copy. Results do not depend on it.
struct Run {
  /// One thread, the caller's.
  Run() = default;
  /// num_threads 0: as many as the pool has; no pool: the default one; no workspace: each thread's
  /// own memory.
  explicit Run(int num_threads, ThreadPool* thread_pool = nullptr,
               Workspace* thread_memory = nullptr)
      : pool(thread_pool != nullptr ? thread_pool : &default_thread_pool()),
        workspace(thread_memory),
        threads(num_threads > 0 ? num_threads : std::max(1, pool->size())) {}

  /// The same for a part of the work that has a thread to itself.
  Run Alone() const {
    Run alone = *this;
    alone.threads = 1;
    return alone;
  }

  ThreadPool* pool = nullptr;  ///< not null where there are several threads
  Workspace* workspace = nullptr;
  int threads = 1;  ///< that are asked for, at least 1
};

}  // namespace smyrf
