// Work divided among threads. Nothing outside team_*.cc knows how they are made.
#pragma once

#include <cstdint>
#include <functional>

#include "base/team.h"

namespace smyrf {

/// The threads that a call asks for: `num_threads`, or DefaultThreads() where that is 0.
int ThreadsFor(int num_threads);

/// Calls body(i) for every i in [0, count), on at most `num_threads` threads (0: DefaultThreads())
/// and never more than 4 a processor, in no fixed order. The first exception is thrown again after
/// all threads have stopped. Bodies run in FloatEnvironment, whatever that of the threads.
void ParallelFor(std::int64_t count, int num_threads,
                 const std::function<void(std::int64_t)>& body);

/// Calls body(head, begin, end) for stretches that together are rows [0, rows) of each head, side
/// by side. Which stretches depends on both counts alone; for few rows there is one, and no thread
/// is woken.
void ParallelRows(std::int64_t heads, std::int64_t rows, int num_threads,
                  const std::function<void(std::int64_t, std::int64_t, std::int64_t)>& body);

/// Calls body(i, threads) for every i in [0, count): where there are at least two for each thread
/// side by side, on one thread each; otherwise one after the other, each with all threads.
void ParallelOuter(std::int64_t count, int num_threads,
                   const std::function<void(std::int64_t, int)>& body);

}  // namespace smyrf
