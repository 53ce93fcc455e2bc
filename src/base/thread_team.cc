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
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/message.h"
#include "base/run.h"

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

// Forks that this process comes from. A child has none of its parent's threads.
std::atomic<std::uint64_t> forks{0};
const int fork_handlers = pthread_atfork(nullptr, nullptr, [] { ++forks; });

class Team {
 public:
  Team() = default;
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  Team(Team&&) = delete;
  Team& operator=(Team&&) = delete;
  ~Team() {
    {
      const std::scoped_lock lock(mutex_);
      ends_ = true;
    }
    begins_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  /// Whether this process has its threads.
  bool IsHere() const { return born_ == forks; }

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
      Wait(begins_, lock, [&] { return section_ != seen || ends_; });
      if (ends_) return;
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

  const std::uint64_t born_ = forks;
  std::atomic<bool> busy_{false};
  std::mutex mutex_;
  std::condition_variable begins_, ended_;
  std::atomic<std::uint64_t> section_{0};
  const std::function<void()>* work_ = nullptr;
  int places_ = 0;  // threads that may still join the section
  int active_ = 0;
  bool ends_ = false;
  std::vector<std::thread> threads_;
};

class StandardPool : public ThreadPool {
 public:
  StandardPool(int size, int most) : size_(size), most_(most) {}
  StandardPool(const StandardPool&) = delete;
  StandardPool& operator=(const StandardPool&) = delete;
  StandardPool(StandardPool&&) = delete;
  StandardPool& operator=(StandardPool&&) = delete;
  ~StandardPool() override {
    std::unique_ptr<Team> team(team_);
    // NOLINTNEXTLINE(bugprone-unused-return-value): its threads are the parent's
    if (team != nullptr && !team->IsHere()) static_cast<void>(team.release());
  }

  int size() const override { return size_; }
  void run(int threads, const std::function<void()>& work) override {
    TheTeam().Run(std::min(threads, most_), work);
  }

 private:
  Team& TheTeam() {
    Team* team = team_;
    if (team != nullptr && team->IsHere()) return *team;
    auto made = std::make_unique<Team>();
    if (team_.compare_exchange_strong(team, made.get())) return *made.release();
    return *team;
  }

  const int size_;
  const int most_;
  // Of a forked child a new one. What it inherited is left: its threads can't be joined.
  std::atomic<Team*> team_{nullptr};
};

}  // namespace

int Processors() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int call_threads(int num_threads) {
  return std::min(Run(num_threads).threads, kThreadsPerProcessor * Processors());
}

std::unique_ptr<ThreadPool> StandardThreads(int size, int most) {
  return std::make_unique<StandardPool>(size, most);
}

std::unique_ptr<ThreadPool> make_thread_pool(int threads) {
  if (threads < 1) {
    Fail(ErrorKind::kValue, "make_thread_pool: got ", threads, " threads, accepted are 1 and more");
  }
  const int given = std::min(threads, kThreadsPerProcessor * Processors());
  return StandardThreads(given, given);
}

}  // namespace smyrf
