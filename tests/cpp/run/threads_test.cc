// Exact: calls on several threads, and several threads that call at once, give the bits of one
// thread. Under the thread sanitizer nothing may race on the way.
#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <cstddef>
#include <string>
#include <thread>
#include <vector>

#include "testing/everything.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

struct Case {
  Call call;
  Upstream upstream;
};

/// Of every method: large enough for several pieces of work, and what else the threads share.
std::vector<Case> Cases() {
  Random random(280);
  std::vector<Case> cases;
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      Call call({1, 4, 2, 160, 300, 16, 12}, dtype);
      FillSmooth(random, call);
      call.options.method = method;
      if (method == Method::kLsh) call.options.cluster_size = 40;
      if (method == Method::kTree) call.options.max_density = 0.6;
      if (method == Method::kDense && dtype == DType::kFloat32) {
        AddRandomMask(random, call);
        call.options.dropout_p = 0.2;
      }
      Upstream upstream = RandomUpstream(random, call, true);
      cases.push_back({std::move(call), std::move(upstream)});
    }
  }
  return cases;
}

/// Calls body(n) on `count` threads that begin together.
template <class Body>
void Together(int count, const Body& body) {
  std::barrier begin(count);
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(count));
  for (int n = 0; n < count; ++n) {
    threads.emplace_back([&, n] {
      begin.arrive_and_wait();
      body(static_cast<std::size_t>(n));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Threads, ForwardAndBackwardOfEveryMethodHaveTheSameBits) {
  for (auto& [call, upstream] : Cases()) {
    call.options.num_threads = 1;
    const Everything one(call, upstream);
    for (const auto& head : one.result.statistics.heads) ASSERT_FALSE(head.dense);
    for (const int threads : {3, 4}) {
      call.options.num_threads = threads;
      EXPECT_TRUE(Everything(call, upstream).SameBits(one)) << call;
      const Result planned = Attend(call, &one.made);
      EXPECT_TRUE(planned.SameBits(Attend(call))) << call;
      EXPECT_TRUE(
          Backward(call, planned, upstream, &one.made).SameBits(Backward(call, planned, upstream)))
          << call;
    }
  }
}

// ctest runs each test in a process of its own: nothing is chosen, made or warm yet.
TEST(Threads, TheFirstCallsOfAProcessMayComeAtOnce) {
  auto cases = Cases();
  for (Case& each : cases) each.call.options.num_threads = 2;
  std::vector<std::vector<Everything>> results(4);
  std::vector<std::vector<std::string>> sets(4);
  Together(4, [&](std::size_t n) {
    sets[n] = instruction_sets();
    for (std::size_t i = 0; i < cases.size(); ++i) {  // each begins with another method
      const Case& each = cases[(i + 2 * n) % cases.size()];
      results[n].emplace_back(each.call, each.upstream);
    }
  });
  for (std::size_t n = 0; n < results.size(); ++n) {
    EXPECT_EQ(sets[n], instruction_sets());
    for (std::size_t i = 0; i < cases.size(); ++i) {
      const Case& each = cases[(i + 2 * n) % cases.size()];
      EXPECT_TRUE(results[n][i].SameBits(Everything(each.call, each.upstream))) << each.call;
    }
  }
}

TEST(Threads, SeveralCallersAtOnceShareArgumentsAndPlans) {
  auto cases = Cases();
  std::vector<Result> expected;
  std::vector<Plan> plans;
  for (Case& each : cases) {
    each.call.options.num_threads = 3;
    plans.push_back(plan(each.call.arguments(), each.call.options));
    expected.push_back(Attend(each.call, &plans.back()));
  }
  std::atomic<int> different{0};
  Together(4, [&](std::size_t n) {
    for (std::size_t i = 0; i < 3 * cases.size(); ++i) {
      const std::size_t at = (i + n) % cases.size();
      if (!Attend(cases[at].call, &plans[at]).SameBits(expected[at])) ++different;
    }
  });
  EXPECT_EQ(different, 0);
}

}  // namespace
}  // namespace smyrf::testing
