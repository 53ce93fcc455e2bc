#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>

#include "base/float_environment.h"

namespace smyrf {

int ThreadsFor(int num_threads) { return num_threads > 0 ? num_threads : DefaultThreads(); }

void ParallelOuter(std::int64_t count, int num_threads,
                   const std::function<void(std::int64_t, int)>& body) {
  const int threads = ThreadsFor(num_threads);
  const bool outer = count >= std::int64_t{2} * threads;
  ParallelFor(count, outer ? threads : 1, [&](std::int64_t i) { body(i, outer ? 1 : threads); });
}

void ParallelRows(std::int64_t heads, std::int64_t rows, int num_threads,
                  const std::function<void(std::int64_t, std::int64_t, std::int64_t)>& body) {
  constexpr std::int64_t kTaskRows = 256;
  const std::int64_t all = heads * rows;
  ParallelFor((all + kTaskRows - 1) / kTaskRows, num_threads, [&](std::int64_t task) {
    const std::int64_t end = std::min(all, (task + 1) * kTaskRows);
    for (std::int64_t at = task * kTaskRows; at < end;) {
      const std::int64_t begin = at % rows;
      const std::int64_t last = std::min(rows, begin + end - at);
      body(at / rows, begin, last);
      at += last - begin;
    }
  });
}

void ParallelFor(std::int64_t count, int num_threads,
                 const std::function<void(std::int64_t)>& body) {
  const auto threads =
      static_cast<int>(std::min<std::int64_t>(TeamSize(ThreadsFor(num_threads)), count));
  if (threads <= 1) {
    const FloatEnvironment environment;
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  std::atomic<std::int64_t> next{0};
  RunTeam(threads, [&] {
    const FloatEnvironment environment;
    for (std::int64_t i = next++; i < count && !failed; i = next++) {
      try {
        body(i);
      } catch (...) {
        if (!failed.exchange(true)) failure = std::current_exception();
      }
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace smyrf
