// Threads. Nothing outside parallel.cc knows how they are made.
#pragma once

#include <cstdint>
#include <functional>

namespace smyrf {

/// Threads that a call with `num_threads = 0` uses; 1 in a child forked from a process that had
/// several threads, whose pool is gone.
int DefaultThreads();

/// Calls body(i) for every i in [0, count), on at most `num_threads` threads (0: DefaultThreads())
/// and never more than 4 a processor, in no fixed order. The first exception is thrown again after
/// all threads have stopped.
void ParallelFor(std::int64_t count, int num_threads,
                 const std::function<void(std::int64_t)>& body);

}  // namespace smyrf
