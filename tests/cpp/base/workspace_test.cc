// Exact and hostile: memory that a program hands in.
#include "smyrf/workspace.h"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "base/workspace.h"
#include "testing/all_methods.h"

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#include <malloc.h>
#endif

namespace smyrf::testing {
namespace {

using kernels::ThreadMemory;

TEST(Workspace, IsUsedAgainClearedAndChangesNoBit) {
  Workspace workspace;
  EXPECT_EQ(workspace.bytes(), 0);
  for (Call call : CallsOfAllMethods()) {
    for (const int threads : {1, 3}) {
      call.options.num_threads = threads;
      call.options.workspace = nullptr;
      const Computed expected = Computed(call);
      call.options.workspace = &workspace;
      workspace.clear();
      EXPECT_EQ(workspace.bytes(), 0);
      EXPECT_TRUE(Computed(call).SameBits(expected)) << call;
      const std::int64_t bytes = workspace.bytes();
      EXPECT_GT(bytes, 10000) << call;
      EXPECT_TRUE(Computed(call).SameBits(expected)) << call;
      // Arrays are kept in a ring, and which threads come in time differs from call to call.
      EXPECT_LT(workspace.bytes(), 2 * bytes * threads) << call;
    }
  }
}

TEST(Workspace, LeavesNothingInThreads) {
  Workspace workspace;
  std::thread([&] {
    for (Call call : CallsOfAllMethods()) {
      call.options.num_threads = 1;
      call.options.workspace = &workspace;
      static_cast<void>(Attend(call));
      EXPECT_EQ(ThreadMemory::Made(), nullptr);
    }
    Call call = CallsOfAllMethods()[0];
    call.options.num_threads = 1;
    static_cast<void>(Attend(call));
    EXPECT_NE(ThreadMemory::Made(), nullptr);
  }).join();
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(Workspace, CountsAllOfItsBytes) {
  // What clear() gives back to malloc, whose blocks are a little larger than what was asked for.
  const auto allocated = [] {
    const struct mallinfo2 info = mallinfo2();
    return static_cast<std::int64_t>(info.uordblks + info.hblkhd);
  };
  Workspace workspace;
  for (Call call : CallsOfAllMethods()) {
    call.options.num_threads = 1;
    call.options.workspace = &workspace;
    static_cast<void>(Computed(call));
    const std::int64_t bytes = workspace.bytes();
    const std::int64_t before = allocated();
    workspace.clear();
    const std::int64_t given = before - allocated();
    EXPECT_GE(given, bytes) << call;
    constexpr std::int64_t kABlock = 1200;  // Highway moves starts of blocks to different lines
    EXPECT_LE(given, bytes + 60 * kABlock) << call;
  }
}
#endif

TEST(Workspace, ServesOneCallAtATime) {
  /// Tries to use a workspace while a call has it.
  class Intruder : public ThreadPool {
   public:
    explicit Intruder(std::function<void()> body) : body_(std::move(body)) {}
    int size() const override { return 2; }
    void run(int /*threads*/, const std::function<void()>& work) override {
      body_();
      work();
    }

   private:
    std::function<void()> body_;
  };
  const auto expect_refused = [](const auto& body) {
    try {
      body();
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kValue);
      EXPECT_STREQ(error.what(),
                   "workspace: another call is using it, and it serves one at a time; give each "
                   "call that runs at the same time one of its own");
    }
  };
  Workspace workspace;
  Call call = CallsOfAllMethods()[0];
  Random random(193);
  const Upstream upstream = RandomUpstream(random, call, true);
  const Result expected = Attend(call);
  const GradientTensors gradients = Backward(call, expected, upstream);
  int times = 0;
  Intruder pool([&] {
    ++times;
    std::thread([&] {
      Call other = CallsOfAllMethods()[3];
      other.options.workspace = &workspace;
      Tensor out(DType::kFloat32, {1, 2, 230, 16});
      const auto before = out.memory();
      expect_refused([&] {
        attention(other.arguments(), other.options, {out.mutable_view(), {}, nullptr, nullptr});
      });
      EXPECT_EQ(out.memory(), before);
      expect_refused([&] { static_cast<void>(plan(other.arguments(), other.options)); });
      expect_refused([&] { static_cast<void>(estimate(other.arguments(), other.options)); });
      expect_refused([&] { static_cast<void>(workspace.bytes()); });
      expect_refused([&] { workspace.clear(); });
    }).join();
  });
  call.options.thread_pool = &pool;
  call.options.workspace = &workspace;
  EXPECT_TRUE(Attend(call).SameBits(expected));
  EXPECT_TRUE(Backward(call, expected, upstream).SameBits(gradients));
  EXPECT_GE(times, 2);
  workspace.clear();
  EXPECT_TRUE(Attend(call).SameBits(expected));
}

TEST(Workspace, IsFreeAgainAfterACallThatThrew) {
  Workspace workspace;
  Call call = CallsOfAllMethods()[0];
  call.options.workspace = &workspace;
  call.options.num_threads = -1;
  EXPECT_THROW(Attend(call), Error);
  call.options.num_threads = 2;
  EXPECT_NO_THROW(static_cast<void>(Attend(call)));
}

}  // namespace
}  // namespace smyrf::testing
