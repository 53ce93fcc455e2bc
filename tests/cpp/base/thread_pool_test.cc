// Exact and hostile: thread pools that a program hands in, and those that the library makes.
#include "smyrf/threads.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "testing/all_methods.h"
#include "testing/child.h"

namespace smyrf::testing {
namespace {

/// A pool of which a test says what run() does.
class ScriptedPool : public ThreadPool {
 public:
  using Script = std::function<void(int threads, const std::function<void()>& work)>;
  ScriptedPool(int size, Script script) : size_(size), script_(std::move(script)) {}
  int size() const override { return size_; }
  void run(int threads, const std::function<void()>& work) override { script_(threads, work); }

 private:
  int size_;
  Script script_;
};

/// Threads of this process.
std::size_t Tasks() {
  struct stat info{};
  EXPECT_EQ(stat("/proc/self/task", &info), 0);
  return info.st_nlink - 2;
}

/// Whether they become so many: the system counts a thread for a moment after it was joined.
bool TasksBecome(std::size_t count) {
  for (int looks = 0; looks < 2000 && Tasks() != count; ++looks) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return Tasks() == count;
}

/// Their number once it stands still. Sanitizers start a thread of their own with the first.
std::size_t SettledTasks() {
  std::thread([] {}).join();
  std::size_t tasks = Tasks();
  for (int same = 0; same < 20; ++same) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (Tasks() != tasks) same = 0;
    tasks = Tasks();
  }
  return tasks;
}

/// What calls of all methods give on the default pool.
const std::vector<Computed>& Expected() {
  static const std::vector<Computed> expected = [] {
    std::vector<Computed> results;
    for (Call call : CallsOfAllMethods()) {
      call.options.num_threads = 1;
      results.emplace_back(call);
    }
    return results;
  }();
  return expected;
}

void ExpectSameBitsOn(ThreadPool& pool, Workspace* workspace = nullptr) {
  std::vector<Call> calls = CallsOfAllMethods();
  for (std::size_t n = 0; n < calls.size(); ++n) {
    calls[n].options.thread_pool = &pool;
    calls[n].options.workspace = workspace;
    EXPECT_TRUE(Computed(calls[n]).SameBits(Expected()[n])) << calls[n];
  }
}

TEST(ThreadPool, AHostsThreadsDoAllTheWork) {
  static_cast<void>(Expected());
  const std::unique_ptr<ThreadPool> threads = make_thread_pool(3);
  std::mutex mutex;
  std::set<std::thread::id> workers{std::this_thread::get_id()};
  std::atomic<int> sections{0};
  std::atomic<bool> inside{false};
  ScriptedPool pool(3, [&](int asked, const std::function<void()>& work) {
    ++sections;
    EXPECT_FALSE(inside.exchange(true)) << "a section in a section";
    EXPECT_GE(asked, 2);
    EXPECT_LE(asked, 3);
    threads->run(asked, [&] {
      {
        const std::scoped_lock lock(mutex);
        workers.insert(std::this_thread::get_id());
      }
      work();
    });
    inside = false;
  });
  pool.run(3, [] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); });
  const std::size_t tasks = SettledTasks();
  std::vector<Call> calls = CallsOfAllMethods();
  for (std::size_t n = 0; n < calls.size(); ++n) {
    calls[n].options.thread_pool = &pool;
    for (const int num_threads : {0, 3}) {
      calls[n].options.num_threads = num_threads;
      sections = 0;
      EXPECT_TRUE(Computed(calls[n]).SameBits(Expected()[n])) << calls[n];
      EXPECT_GT(sections, 0) << calls[n];
    }
    calls[n].options.num_threads = 1;
    sections = 0;
    EXPECT_TRUE(Computed(calls[n]).SameBits(Expected()[n])) << calls[n];
    EXPECT_EQ(sections, 0) << calls[n];
  }
  EXPECT_TRUE(TasksBecome(tasks)) << "threads of another pool";
  EXPECT_LE(workers.size(), 3U);
}

/// As docs/threads.md has it.
class HostThreads : public smyrf::ThreadPool {
 public:
  int size() const override { return 2; }
  void run(int threads, const std::function<void()>& work) override {
    std::vector<std::future<void>> others;
    for (int i = 1; i < threads; ++i) others.push_back(std::async(std::launch::async, work));
    work();  // on the caller's thread
    for (std::future<void>& other : others) other.get();
  }
};

TEST(ThreadPool, IsAsTheDocumentHasIt) {
  HostThreads threads;
  Workspace workspace;
  ExpectSameBitsOn(threads, &workspace);
}

TEST(ThreadPool, MergeTakesAHostsThreadsToo) {
  Random random(192);
  const std::vector<std::int64_t> shape{2, 3, 500, 8};
  std::atomic<int> sections{0};
  ScriptedPool pool(2, [&](int, const std::function<void()>& work) {
    ++sections;
    work();
  });
  Call call({2, 3, 3, 500, 20, 8, 8});
  call.FillNormal(random);
  const Result part = Attend(call);
  std::vector<Result> merged;
  for (ThreadPool* const each :
       {static_cast<ThreadPool*>(nullptr), static_cast<ThreadPool*>(&pool)}) {
    Result result = part;
    const auto lse = [](std::vector<float>& floats) {
      return Contiguous<void>(floats.data(), DType::kFloat32, {2, 3, 500});
    };
    merge(result.out.mutable_view(), lse(result.lse), part.out.view(),
          Contiguous<const void>(part.lse.data(), DType::kFloat32, {2, 3, 500}), 0, each);
    merged.push_back(std::move(result));
  }
  EXPECT_TRUE(merged[0].SameBits(merged[1]));
  EXPECT_EQ(sections, 1);
}

TEST(ThreadPool, GivesFewerThreadsOrNone) {
  using Work = const std::function<void()>&;
  ScriptedPool inline_pool(4, [](int, Work work) { work(); });
  ExpectSameBitsOn(inline_pool);
  ScriptedPool idle(4, [](int, Work) {});  // the caller does what is left
  ExpectSameBitsOn(idle);
  ScriptedPool again_and_again(4, [](int, Work work) {
    for (int i = 0; i < 5; ++i) work();
  });
  ExpectSameBitsOn(again_and_again);
  ScriptedPool others_only(4, [](int, Work work) { std::thread(work).join(); });
  ExpectSameBitsOn(others_only);
  for (const int size : {1, 0, -3}) {
    ScriptedPool alone(size, [](int, Work) { ADD_FAILURE() << "asked for one thread"; });
    Call call = CallsOfAllMethods()[0];
    call.options.num_threads = 0;
    call.options.thread_pool = &alone;
    EXPECT_TRUE(Computed(call).SameBits(Expected()[0]));
  }
}

TEST(ThreadPool, MayThrow) {
  Workspace workspace;
  for (const bool first : {true, false}) {
    bool throws = true;
    ScriptedPool pool(4, [&](int, const std::function<void()>& work) {
      if (!first) work();
      if (throws) throw std::runtime_error("no thread today");
      if (first) work();
    });
    std::vector<Call> calls = CallsOfAllMethods();
    for (std::size_t n = 0; n < calls.size(); ++n) {
      calls[n].options.thread_pool = &pool;
      calls[n].options.workspace = &workspace;
      throws = true;
      EXPECT_THROW(Attend(calls[n]), std::runtime_error) << calls[n];
      throws = false;
      EXPECT_TRUE(Computed(calls[n]).SameBits(Expected()[n])) << calls[n];
    }
  }
}

TEST(ThreadPool, MayDoOtherCallsInTheMiddleOfASection) {
  // As pools do whose waiting threads take any work that there is.
  const Call other = CallsOfAllMethods()[3];
  Workspace workspace;
  for (Workspace* const each : {static_cast<Workspace*>(nullptr), &workspace}) {
    int depth = 0;
    int others = 0;
    ScriptedPool pool(3, [&](int, const std::function<void()>& work) {
      ++depth;
      if (depth == 1 && others % 4 == 0) {
        Call now = other;
        now.options.thread_pool = &pool;
        EXPECT_TRUE(Attend(now).SameBits(Expected()[3].by_plan));
      }
      if (depth == 1) ++others;
      work();
      --depth;
    });
    ExpectSameBitsOn(pool, each);
    EXPECT_GT(others, 0);
  }
}

TEST(ThreadPool, TakesSeveralCallsAtATime) {
  const std::vector<Call> calls = CallsOfAllMethods();
  const std::vector<Computed>& expected = Expected();
  const std::unique_ptr<ThreadPool> pool = make_thread_pool(3);
  std::atomic<int> different{0};
  std::vector<std::thread> callers;
  callers.reserve(4);
  for (std::size_t n = 0; n < 4; ++n) {
    callers.emplace_back([&, n] {
      for (std::size_t times = 0; times < calls.size(); ++times) {
        const std::size_t at = (n + times) % calls.size();
        Call call = calls[at];
        call.options.thread_pool = pool.get();
        if (!Attend(call).SameBits(expected[at].by_plan)) ++different;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(different, 0);
}

TEST(MakeThreadPool, ThreadsEndWithIt) {
  const std::size_t before = SettledTasks();
  {
    const std::unique_ptr<ThreadPool> unused = make_thread_pool(2);
    const std::unique_ptr<ThreadPool> pool = make_thread_pool(3);
    EXPECT_EQ(pool->size(), 3);
    EXPECT_EQ(Tasks(), before) << "made before they were needed";
    for (int times = 0; times < 3; ++times) {
      std::atomic<int> calls{0};
      pool->run(1000, [&] {
        ++calls;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      });
      EXPECT_GE(calls, 1);
      EXPECT_LE(calls, 3);
      EXPECT_TRUE(TasksBecome(before + 2));
    }
    ExpectSameBitsOn(*pool);
  }
  EXPECT_TRUE(TasksBecome(before));
}

TEST(MakeThreadPool, TakesOneThreadAndMore) {
  const std::unique_ptr<ThreadPool> one = make_thread_pool(1);
  EXPECT_EQ(one->size(), 1);
  int calls = 0;
  one->run(4, [&] { ++calls; });
  EXPECT_EQ(calls, 1);
  EXPECT_LE(make_thread_pool(1 << 30)->size(), 1 << 20);
  for (const int threads : {0, -1}) {
    try {
      static_cast<void>(make_thread_pool(threads));
      ADD_FAILURE() << threads;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kValue);
      EXPECT_EQ(error.what(), "make_thread_pool: got " + std::to_string(threads) +
                                  " threads, accepted are 1 and more");
    }
  }
}

TEST(Fork, AThreadPoolIsMadeAnewInTheChild) {
  std::unique_ptr<ThreadPool> pool = make_thread_pool(3);
  Call call = CallsOfAllMethods()[0];
  call.options.thread_pool = pool.get();
  const Result result = Attend(call);
  EXPECT_TRUE(TrueInChild([&] {
    const bool same = Attend(call).SameBits(result);
    const bool threads = Tasks() > 1;
    pool.reset();
    return same && threads && TasksBecome(1);
  }));
  EXPECT_TRUE(TrueInChild([&] {
    pool.reset();  // not used before
    return true;
  }));
  EXPECT_TRUE(Attend(call).SameBits(result));
}

}  // namespace
}  // namespace smyrf::testing
