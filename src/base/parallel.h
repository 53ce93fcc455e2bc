// Work divided among the threads of a call.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/float_environment.h"
#include "base/run.h"

namespace smyrf {

namespace parallel {

/// A body of ParallelFor, without the cost of std::function.
struct AnyBody {
  const void* body;
  void (*call)(const void* body, std::int64_t i);
};

/// ParallelFor on 2 threads or more.
void ForOnThreads(std::int64_t count, const Run& run, const AnyBody& body);

}  // namespace parallel

/// Calls body(i) for every i in [0, count), on at most run.threads threads, in no fixed order. The
/// first exception is thrown again after all threads have stopped. Bodies run in FloatEnvironment,
/// whatever that of the threads, and in memory of the call's workspace.
template <class Body>
void ParallelFor(std::int64_t count, const Run& run, const Body& body) {
  if (count <= 1 || run.threads <= 1) {
    const FloatEnvironment environment;
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  parallel::ForOnThreads(count, run, {&body, [](const void* any, std::int64_t i) {
                                        (*static_cast<const Body*>(any))(i);
                                      }});
}

/// Calls body(head, begin, end) for stretches that together are rows [0, rows) of each head, side
/// by side. Which stretches depends on both counts alone; for few rows there is one, and no thread
/// is woken.
template <class Body>
void ParallelRows(std::int64_t heads, std::int64_t rows, const Run& run, const Body& body) {
  constexpr std::int64_t kTaskRows = 256;
  const std::int64_t all = heads * rows;
  ParallelFor((all + kTaskRows - 1) / kTaskRows, run, [&](std::int64_t task) {
    const std::int64_t end = std::min(all, (task + 1) * kTaskRows);
    for (std::int64_t at = task * kTaskRows; at < end;) {
      const std::int64_t begin = at % rows;
      const std::int64_t last = std::min(rows, begin + end - at);
      body(at / rows, begin, last);
      at += last - begin;
    }
  });
}

/// Calls body(i, inner) for every i in [0, count): where there are at least two for each thread
/// side by side, on one thread each; otherwise one after the other, each with all threads.
template <class Body>
void ParallelOuter(std::int64_t count, const Run& run, const Body& body) {
  const bool outer = count >= std::int64_t{2} * run.threads;
  const Run alone = run.Alone();
  const Run& inner = outer ? alone : run;
  ParallelFor(count, outer ? run : alone, [&](std::int64_t i) { body(i, inner); });
}

}  // namespace smyrf
