// A section ends when the threads that took part in it are done. One that the system did not wake
// in time is not waited for: on a busy machine the caller does the work alone, where a barrier
// would wait for every thread's turn at each section. Idle threads sleep.
#include "base/thread_team.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace smyrf {
namespace {

// Looks at the next section before a thread sleeps: about 20 microseconds, less than waking costs.
constexpr int kLooks = 400;

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

/// condition.wait(lock, ready). That function has a newer version in GCC 12's library, which would
/// keep what is compiled there from running where GCC 11's is.
template <typename Ready>
void Wait(std::condition_variable& condition, std::unique_lock<std::mutex>& lock, Ready ready) {
  while (!condition.wait_for(lock, std::chrono::hours(1), ready)) {
  }
}

class Team {
 public:
  void Run(int threads, const std::function<void()>& work) {
    // Another call has the threads, or this is a section inside a section.
    if (threads <= 1 || busy_.exchange(true)) return work();
    Grow(threads - 1);
    {
      const std::scoped_lock lock(mutex_);
      work_ = &work;
      places_ = threads - 1;
      ++section_;
    }
    for (int i = 1; i < threads; ++i) begins_.notify_one();
    work();
    {
      std::unique_lock lock(mutex_);
      places_ = 0;
      Wait(ended_, lock, [&] { return active_ == 0; });
      work_ = nullptr;
    }
    busy_ = false;
  }

 private:
  /// Makes threads up to `count`, or as many as the system gives.
  void Grow(int count) {
    bool given = true;
    while (given && static_cast<int>(threads_.size()) < count) {
      try {
        threads_.emplace_back([this] { Serve(); });
      } catch (const std::exception&) {  // no thread, or no memory for it
        given = false;
      }
    }
  }

  void Serve() {
    std::uint64_t seen = 0;
    while (true) {
      for (int look = 0; look < kLooks && section_ == seen; ++look) Pause();
      std::unique_lock lock(mutex_);
      Wait(begins_, lock, [&] { return section_ != seen; });
      seen = section_;
      if (places_ == 0) continue;
      --places_;
      ++active_;
      const std::function<void()>& work = *work_;
      lock.unlock();
      work();
      lock.lock();
      if (--active_ == 0) ended_.notify_one();
    }
  }

  std::atomic<bool> busy_{false};
  std::mutex mutex_;
  std::condition_variable begins_, ended_;
  std::atomic<std::uint64_t> section_{0};
  const std::function<void()>* work_ = nullptr;
  int places_ = 0;  // threads that may still join the section
  int active_ = 0;
  std::vector<std::thread> threads_;
};

std::atomic<Team*> process_team{nullptr};

// A forked child has none of the threads and makes a new team. What it inherited is left: its
// threads can't be joined.
const int fork_handlers = pthread_atfork(nullptr, nullptr, [] { process_team = nullptr; });

/// Never destroyed: when a program ends, another of its threads may still compute.
Team& ProcessTeam() {
  Team* team = process_team;
  if (team != nullptr) return *team;
  auto made = std::make_unique<Team>();
  if (process_team.compare_exchange_strong(team, made.get())) team = made.release();
  return *team;
}

}  // namespace

int Processors() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void RunThreads(int threads, const std::function<void()>& work) {
  ProcessTeam().Run(threads, work);
}

}  // namespace smyrf
