// Threads of the standard library that sleep between sections and wait for no one: the caller does
// the work of those that the system did not wake in time.
#pragma once

#include <memory>

#include "smyrf/threads.h"

namespace smyrf {

/// More threads than processors only wait for each other, and where the system has no more to give
/// libgomp ends the process.
inline constexpr int kThreadsPerProcessor = 4;

/// Processors that this process may run on.
int Processors();

/// A pool that a call with num_threads = 0 asks for `size` threads and that has at most `most`;
/// both at least 1.
std::unique_ptr<ThreadPool> StandardThreads(int size, int most);

}  // namespace smyrf
