// Exact: calls from C on a program's own threads and memory.
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "testing/c_call.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

/// A pool that starts its threads for every section.
struct Started {
  std::atomic<int> sections{0};

  static std::int32_t Size(void* /*user*/) { return 3; }
  static std::int32_t Run(void* user, std::int32_t threads, void (*work)(void*), void* argument) {
    ++static_cast<Started*>(user)->sections;
    std::vector<std::thread> others;
    for (std::int32_t i = 1; i < threads; ++i) others.emplace_back(work, argument);
    work(argument);
    for (std::thread& other : others) other.join();
    return 0;
  }
};

Call SomeCall(Method method) {
  Random random(8);
  Call call({1, 4, 2, 160, 300, 16, 12});
  FillSmooth(random, call);
  call.options.method = method;
  if (method == Method::kTree) call.options.max_density = 0.6;
  return call;
}

TEST(CThreads, APoolAndAWorkspaceOfTheProgram) {
  Started started;
  const smyrf_thread_pool pool{sizeof(pool), &started, Started::Size, Started::Run};
  smyrf_workspace* workspace = nullptr;
  ASSERT_EQ(smyrf_workspace_create(&workspace), SMYRF_OK);
  for (const Method method : {Method::kDense, Method::kLsh, Method::kTree}) {
    const Call call = SomeCall(method);
    CallC from_c(call);
    from_c.c.thread_pool = &pool;
    from_c.c.workspace = workspace;
    const OutputsC outputs(call);
    const int before = started.sections;
    ASSERT_EQ(smyrf_attention(&from_c.c, &outputs.c), SMYRF_OK) << smyrf_last_error();
    EXPECT_GT(started.sections, before);
    EXPECT_TRUE(outputs.result.SameBits(Attend(call)));
  }
  std::int64_t bytes = 0;
  ASSERT_EQ(smyrf_workspace_bytes(workspace, &bytes), SMYRF_OK);
  EXPECT_GT(bytes, 0);
  ASSERT_EQ(smyrf_workspace_clear(workspace), SMYRF_OK);
  ASSERT_EQ(smyrf_workspace_bytes(workspace, &bytes), SMYRF_OK);
  EXPECT_EQ(bytes, 0);
  smyrf_workspace_free(workspace);
}

/// Uses the workspace of the call that it works for.
struct Greedy {
  const CallC* call = nullptr;
  smyrf_workspace* workspace = nullptr;
  smyrf_status status = SMYRF_OK;
  std::string message;

  static std::int32_t Run(void* user, std::int32_t /*threads*/, void (*work)(void*),
                          void* argument) {
    auto* const self = static_cast<Greedy*>(user);
    smyrf_call second = self->call->c;
    second.workspace = self->workspace;
    second.num_threads = 1;
    second.thread_pool = nullptr;
    const OutputsC outputs(self->call->call);
    self->status = smyrf_attention(&second, &outputs.c);
    self->message = smyrf_last_error();
    work(argument);
    return 0;
  }
};

TEST(CThreads, AWorkspaceServesOneCallAtATime) {
  const Call call = SomeCall(Method::kDense);
  CallC from_c(call);
  Greedy greedy;
  greedy.call = &from_c;
  ASSERT_EQ(smyrf_workspace_create(&greedy.workspace), SMYRF_OK);
  const smyrf_thread_pool pool{sizeof(pool), &greedy, Started::Size, Greedy::Run};
  from_c.c.workspace = greedy.workspace;
  from_c.c.thread_pool = &pool;
  const OutputsC outputs(call);
  EXPECT_EQ(smyrf_attention(&from_c.c, &outputs.c), SMYRF_OK) << smyrf_last_error();
  EXPECT_TRUE(outputs.result.SameBits(Attend(call)));
  EXPECT_EQ(greedy.status, SMYRF_ERROR_VALUE);
  EXPECT_EQ(greedy.message.rfind("workspace: ", 0), 0U) << greedy.message;
  smyrf_workspace_free(greedy.workspace);
}

}  // namespace
}  // namespace smyrf::testing
