// Exact and hostile: threads, exceptions that cross them, and processes that fork.
#include "base/parallel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "testing/call.h"
#include "testing/child.h"

namespace smyrf::testing {
namespace {

TEST(ParallelFor, CallsEveryIndexOnce) {
  for (const std::int64_t count : {0, 1, 2, 3, 7, 100, 5000}) {
    for (const int threads : {0, 1, 2, 3, 8, std::numeric_limits<int>::max()}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
      ParallelFor(count, smyrf::Run(threads),
                  [&](std::int64_t i) { ++calls[static_cast<std::size_t>(i)]; });
      for (const auto& times : calls) ASSERT_EQ(times, 1) << count << " on " << threads;
    }
  }
}

TEST(ParallelRows, CallsEveryRowOfEveryHeadOnceInTheSameStretches) {
  for (const std::int64_t heads : {0, 1, 3, 300}) {
    for (const std::int64_t rows : {0, 1, 255, 256, 1000}) {
      std::set<std::vector<std::int64_t>> expected;
      for (const int threads : {1, 2, 3}) {
        std::mutex mutex;
        std::set<std::vector<std::int64_t>> stretches;
        std::vector<std::atomic<int>> calls(static_cast<std::size_t>(heads * rows));
        ParallelRows(heads, rows, smyrf::Run(threads),
                     [&](std::int64_t head, std::int64_t begin, std::int64_t end) {
                       ASSERT_LT(begin, end);
                       for (std::int64_t i = begin; i < end; ++i) {
                         ++calls[static_cast<std::size_t>(head * rows + i)];
                       }
                       const std::scoped_lock lock(mutex);
                       stretches.insert({head, begin, end});
                     });
        for (const auto& times : calls) ASSERT_EQ(times, 1) << heads << " x " << rows;
        if (threads == 1) expected = stretches;
        EXPECT_EQ(stretches, expected);
      }
    }
  }
}

TEST(ParallelFor, UsesAsManyThreadsAsAskedAndNoMore) {
  const auto used = [](int threads) {
    std::mutex mutex;
    std::set<std::thread::id> ids;
    ParallelFor(400, smyrf::Run(threads), [&](std::int64_t) {
      {
        const std::scoped_lock lock(mutex);
        ids.insert(std::this_thread::get_id());
      }
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    });
    return ids.size();
  };
  EXPECT_EQ(used(1), 1U);
  EXPECT_LE(used(2), 2U);
  EXPECT_GE(used(2), 2U);  // 40 ms of sleep: a second thread had its chance
  EXPECT_LE(used(3), 3U);
  EXPECT_LE(used(1000000), std::size_t{4} * std::thread::hardware_concurrency());
}

TEST(ParallelFor, ThrowsTheFirstExceptionAgain) {
  for (const int threads : {1, 2, 3}) {
    for (const std::int64_t count : {1, 2, 100}) {
      std::string message;
      try {
        ParallelFor(count, smyrf::Run(threads), [&](std::int64_t i) {
          if (i == count - 1) throw std::out_of_range("item " + std::to_string(i));
        });
      } catch (const std::out_of_range& error) {
        message = error.what();
      }
      EXPECT_EQ(message, "item " + std::to_string(count - 1));
    }
    // All bodies throw: one of the exceptions arrives, and the threads work on afterwards.
    EXPECT_THROW(ParallelFor(50, smyrf::Run(threads),
                             [](std::int64_t) { throw std::runtime_error("each"); }),
                 std::runtime_error);
    std::atomic<int> calls{0};
    ParallelFor(50, smyrf::Run(threads), [&](std::int64_t) { ++calls; });
    EXPECT_EQ(calls, 50);
  }
}

std::vector<Call> Calls() {
  Random random(50);
  std::vector<Call> calls;
  for (const Method method : {Method::kDense, Method::kLsh}) {
    Call call({2, 3, 3, 90, 150, 16, 16});
    call.FillNormal(random);
    call.options.method = method;
    call.options.num_threads = 2;
    calls.push_back(call);
  }
  return calls;
}

std::vector<Result> Results(const std::vector<Call>& calls) {
  std::vector<Result> results;
  results.reserve(calls.size());
  for (const Call& call : calls) results.push_back(Attend(call));
  return results;
}

TEST(Fork, AChildComputesTheSameBitsAfterItsParentUsedThreads) {
  const std::vector<Call> calls = Calls();
  const std::vector<Result> results = Results(calls);
  const auto same = [&] {
    for (std::size_t n = 0; n < calls.size(); ++n) {
      if (!Attend(calls[n]).SameBits(results[n])) return false;
    }
    return true;
  };
  EXPECT_TRUE(TrueInChild([&] { return same() && default_thread_pool().size() == 1; }));
  EXPECT_TRUE(TrueInChild([&] { return TrueInChild(same); }));  // and a grandchild
  EXPECT_TRUE(same());                                          // the parent works on
}

TEST(Fork, AChildOfAnotherThreadComputesToo) {
  const std::vector<Call> calls = Calls();
  const Result result = Attend(calls[0]);
  bool same = false;
  std::thread([&] {
    (void)Attend(calls[1]);  // a pool of this thread's own
    same = TrueInChild([&] { return Attend(calls[0]).SameBits(result); });
  }).join();
  EXPECT_TRUE(same);
}

}  // namespace
}  // namespace smyrf::testing
