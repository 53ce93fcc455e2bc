// Hostile: what a program in C can get wrong is an error with a sentence, and no crash.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "testing/c_call.h"
#include "testing/random_call.h"

namespace smyrf::testing {
namespace {

Call SmallCall() {
  Random random(7);
  Call call({1, 2, 2, 40, 50, 8, 8});
  call.FillNormal(random);
  call.options.method = Method::kDense;
  return call;
}

/// The call after `change`: its status, and that its outputs are as they were where it says so.
class Changed {
 public:
  explicit Changed(const std::function<void(smyrf_call&, smyrf_outputs&)>& change,
                   const Call& call = SmallCall())
      : from_c_(call), outputs_(call) {
    const std::vector<std::byte> before = outputs_.result.out.memory();
    change(from_c_.c, outputs_.c);
    status = smyrf_attention(&from_c_.c, &outputs_.c);
    message = status == SMYRF_OK ? "" : smyrf_last_error();
    if (status == SMYRF_ERROR_VALUE || status == SMYRF_ERROR_TYPE) {
      EXPECT_EQ(outputs_.result.out.memory(), before);
    }
  }
  bool Says(smyrf_status expected, const std::string& start) const {
    if (status == expected && message.starts_with(start)) return true;
    ADD_FAILURE() << "status " << status << ": " << message;
    return false;
  }

  bool Gives(const Result& expected) const {
    return status == SMYRF_OK && outputs_.result.SameBits(expected);
  }

  smyrf_status status = SMYRF_OK;
  std::string message;

 private:
  CallC from_c_;
  OutputsC outputs_;
};

TEST(CHostile, NullPointers) {
  const Call call = SmallCall();
  const CallC from_c(call);
  const OutputsC outputs(call);
  smyrf_plan* plan = nullptr;
  ASSERT_EQ(smyrf_make_plan(&from_c.c, &plan), SMYRF_OK);
  std::size_t size = 0;
  const std::vector<smyrf_status> statuses{
      smyrf_attention(nullptr, &outputs.c),
      smyrf_attention(&from_c.c, nullptr),
      smyrf_attention_backward(nullptr, nullptr),
      smyrf_attention_backward(&from_c.c, nullptr),
      smyrf_estimate(&from_c.c, nullptr),
      smyrf_merge(nullptr, nullptr, nullptr, nullptr, 0, nullptr),
      smyrf_make_plan(&from_c.c, nullptr),
      smyrf_plan_get_info(nullptr, nullptr),
      smyrf_plan_get_info(plan, nullptr),
      smyrf_plan_density(plan, 0, 0, nullptr),
      smyrf_plan_density(nullptr, 0, 0, nullptr),
      smyrf_plan_save(nullptr, "x"),
      smyrf_plan_save(plan, nullptr),
      smyrf_plan_load(nullptr, nullptr),
      smyrf_plan_to_bytes(plan, nullptr, nullptr),
      smyrf_plan_to_bytes(nullptr, nullptr, &size),
      smyrf_plan_from_bytes("", 0, nullptr),
      smyrf_statistics_create(nullptr),
      smyrf_statistics_summary(nullptr, nullptr),
      smyrf_statistics_head(nullptr, 0, 0, nullptr),
      smyrf_workspace_create(nullptr),
      smyrf_workspace_bytes(nullptr, nullptr),
      smyrf_workspace_clear(nullptr),
  };
  for (std::size_t i = 0; i < statuses.size(); ++i) {
    EXPECT_EQ(statuses[i], SMYRF_ERROR_VALUE) << "function " << i;
  }
  smyrf_plan* other = plan;
  EXPECT_EQ(smyrf_plan_load(nullptr, &other), SMYRF_ERROR_VALUE);
  EXPECT_EQ(other, nullptr);
  EXPECT_EQ(smyrf_plan_from_bytes(nullptr, 8, &other), SMYRF_ERROR_VALUE);
  EXPECT_EQ(smyrf_plan_load("/nowhere/at/all", &other), SMYRF_ERROR_VALUE);
  EXPECT_EQ(smyrf_make_plan(nullptr, &other), SMYRF_ERROR_VALUE);
  smyrf_plan_free(plan);
  smyrf_plan_free(nullptr);
  smyrf_statistics_free(nullptr);
  smyrf_workspace_free(nullptr);

  for (const auto member : {&smyrf_call::query, &smyrf_call::key, &smyrf_call::value}) {
    const Changed changed([&](smyrf_call& c, smyrf_outputs& /*o*/) { c.*member = nullptr; });
    EXPECT_TRUE(changed.Says(SMYRF_ERROR_VALUE, member == &smyrf_call::query ? "query: got a null"
                                                : member == &smyrf_call::key
                                                    ? "key: got a null"
                                                    : "value: got a null"));
  }
  EXPECT_TRUE(Changed([](smyrf_call& /*c*/, smyrf_outputs& o) {
                o.out = nullptr;
              }).Says(SMYRF_ERROR_VALUE, "out: got a null"));
}

TEST(CHostile, Tensors) {
  const auto with = [](const std::function<void(smyrf_tensor&)>& change) {
    const Call call = SmallCall();
    smyrf_tensor query = TensorC(call.query.view());
    change(query);
    return Changed([&](smyrf_call& c, smyrf_outputs& /*o*/) { c.query = &query; });
  };
  for (const std::int32_t dtype : {-1, 4, 256, 257, std::numeric_limits<std::int32_t>::min()}) {
    EXPECT_TRUE(with([&](smyrf_tensor& t) {
                  t.dtype = dtype;
                }).Says(SMYRF_ERROR_TYPE, "query: got dtype number " + std::to_string(dtype)));
  }
  for (const std::int32_t rank : {-1, 5, std::numeric_limits<std::int32_t>::max()}) {
    EXPECT_TRUE(with([&](smyrf_tensor& t) {
                  t.rank = rank;
                }).Says(SMYRF_ERROR_TYPE, "query: got rank " + std::to_string(rank)));
  }
  EXPECT_TRUE(with([](smyrf_tensor& t) { t.rank = 3; }).Says(SMYRF_ERROR_TYPE, "query: got 3"));
  EXPECT_TRUE(with([](smyrf_tensor& t) {
                t.data = nullptr;
              }).Says(SMYRF_ERROR_VALUE, "query: got a null pointer"));
  EXPECT_TRUE(with([](smyrf_tensor& t) { t.shape[2] = -1; }).Says(SMYRF_ERROR_VALUE, "query: got"));
  EXPECT_TRUE(
      with([](smyrf_tensor& t) { t = {}; }).Says(SMYRF_ERROR_VALUE, "query: got struct_size 0"));
  EXPECT_TRUE(with([](smyrf_tensor& t) {
                constexpr std::int64_t kHuge = std::int64_t{1} << 62;
                t = smyrf_rows(t.data, SMYRF_FLOAT32, kHuge, kHuge, kHuge, kHuge);
              }).Says(SMYRF_ERROR_VALUE, "query: got"));
  EXPECT_TRUE(with([](smyrf_tensor& t) {
                t = smyrf_contiguous(t.data, SMYRF_FLOAT32, 5, t.shape);
              }).Says(SMYRF_ERROR_TYPE, "query: got rank 5"));
}

TEST(CHostile, Options) {
  using Outputs = smyrf_outputs;
  const auto refused = [](const char* start, const std::function<void(smyrf_call&)>& change) {
    EXPECT_TRUE(
        Changed([&](smyrf_call& c, Outputs& /*o*/) { change(c); }).Says(SMYRF_ERROR_VALUE, start));
  };
  refused("method: got 'denze', accepted are auto, dense, lsh, tree",
          [](smyrf_call& c) { c.method = "denze"; });
  refused("method: got ''", [](smyrf_call& c) { c.method = ""; });
  refused("is_causal: got 7", [](smyrf_call& c) { c.is_causal = 7; });
  refused("enable_gqa: got -1", [](smyrf_call& c) { c.enable_gqa = -1; });
  refused("num_threads: got -1", [](smyrf_call& c) { c.num_threads = -1; });
  refused("num_threads: got 4294967297", [](smyrf_call& c) { c.num_threads = 4294967297; });
  refused("dropout_p: got nan", [](smyrf_call& c) { c.dropout_p = kNaN; });
  const double nan = kNaN;
  refused("scale: got nan", [&](smyrf_call& c) { c.scale = &nan; });
  const std::int64_t window[2] = {-2, 0};
  refused("window: got left = -2", [&](smyrf_call& c) { c.window = window; });
  refused("positions: ", [&](smyrf_call& c) { c.positions = window; });
  EXPECT_TRUE(Changed([](smyrf_call& c, Outputs& /*o*/) {
                c.method = "lsh";
                c.is_causal = 1;
              }).Says(SMYRF_ERROR_UNSUPPORTED, ""));
}

TEST(CHostile, SizesOfStructs) {
  const auto sized = [](std::size_t size) {
    return Changed([&](smyrf_call& c, smyrf_outputs& /*o*/) { c.struct_size = size; });
  };
  EXPECT_TRUE(sized(0).Says(SMYRF_ERROR_VALUE, "call: got struct_size 0, which is no size"));
  EXPECT_TRUE(sized(sizeof(smyrf_call) - 1).Says(SMYRF_ERROR_VALUE, "call: got struct_size"));
  EXPECT_TRUE(sized(offsetof(smyrf_call, value)).Says(SMYRF_ERROR_VALUE, "call: got struct_size"));
  EXPECT_TRUE(sized(sizeof(smyrf_call) + 8).Says(SMYRF_ERROR_VALUE, "call: got struct_size"));
  EXPECT_NE(sized(static_cast<std::size_t>(-1)).message.find("newer header"), std::string::npos);
  // An older program's smaller struct: what lies behind it is not read.
  const Changed older([](smyrf_call& c, smyrf_outputs& /*o*/) {
    std::memset(&c.dropout_p, 0xFF, sizeof(c) - offsetof(smyrf_call, dropout_p));
    c.struct_size = offsetof(smyrf_call, dropout_p);
  });
  EXPECT_TRUE(older.Gives(Attend(SmallCall()))) << older.message;
  EXPECT_TRUE(Changed([](smyrf_call& /*c*/, smyrf_outputs& o) {
                o.struct_size = sizeof(o) + 8;
              }).Says(SMYRF_ERROR_VALUE, "outputs: got struct_size"));

  // The library does not write behind the end of an older program's struct.
  smyrf_statistics* statistics = nullptr;
  ASSERT_EQ(smyrf_statistics_create(&statistics), SMYRF_OK);
  smyrf_summary summary{};
  std::memset(&summary, 0x5A, sizeof(summary));
  summary.struct_size = offsetof(smyrf_summary, batch);
  ASSERT_EQ(smyrf_statistics_summary(statistics, &summary), SMYRF_OK);
  EXPECT_STREQ(summary.reason, "");
  EXPECT_EQ(summary.batch, 0x5A5A5A5A5A5A5A5A);
  EXPECT_EQ(summary.struct_size, offsetof(smyrf_summary, batch));
  auto head = Sized<smyrf_head>();
  EXPECT_EQ(smyrf_statistics_head(statistics, 0, 0, &head), SMYRF_ERROR_VALUE);
  smyrf_statistics_free(statistics);
}

TEST(CHostile, PlansOfOtherCalls) {
  const Call call = SmallCall();
  const CallC from_c(call);
  smyrf_plan* plan = nullptr;
  ASSERT_EQ(smyrf_make_plan(&from_c.c, &plan), SMYRF_OK);
  Call larger({1, 2, 2, 41, 50, 8, 8});
  larger.options.method = Method::kDense;
  smyrf_plan* kept = plan;
  const Changed changed(
      [&](smyrf_call& c, smyrf_outputs& o) {
        c.plan = plan;
        o.plan = &kept;
      },
      larger);
  EXPECT_EQ(changed.status, SMYRF_ERROR_VALUE);
  EXPECT_EQ(kept, nullptr);
  // A plan that was passed in is kept by a handle of its own.
  EXPECT_EQ(Changed([&](smyrf_call& c, smyrf_outputs& o) {
              c.plan = plan;
              o.plan = &kept;
            }).status,
            SMYRF_OK);
  smyrf_call with_plan = from_c.c;
  with_plan.plan = plan;
  smyrf_plan_free(kept);
  EXPECT_EQ(smyrf_make_plan(&with_plan, &kept), SMYRF_ERROR_VALUE);
  EXPECT_EQ(std::string(smyrf_last_error()).rfind("plan: ", 0), 0U);
  smyrf_plan_free(plan);
}

TEST(CHostile, PoolsThatMisbehave) {
  const Call call = SmallCall();
  const Result expected = Attend(call);
  const auto run_with = [&](smyrf_thread_pool pool) {
    return Changed([&](smyrf_call& c, smyrf_outputs& /*o*/) {
      c.num_threads = pool.size == nullptr ? 0 : c.num_threads;
      c.thread_pool = &pool;
    });
  };
  constexpr auto kTwo = [](void*) -> std::int32_t { return 2; };
  constexpr auto kNothing = [](void*, std::int32_t, void (*)(void*), void*) -> std::int32_t {
    return 0;
  };
  constexpr std::size_t kSize = sizeof(smyrf_thread_pool);
  EXPECT_TRUE(run_with({kSize, nullptr, nullptr, kNothing}).Says(SMYRF_ERROR_VALUE, "thread_pool"));
  EXPECT_TRUE(run_with({kSize, nullptr, kTwo, nullptr}).Says(SMYRF_ERROR_VALUE, "thread_pool"));
  EXPECT_TRUE(run_with({8, nullptr, kTwo, kNothing}).Says(SMYRF_ERROR_VALUE, "thread_pool"));
  // No work done: the caller does it.
  EXPECT_TRUE(run_with({kSize, nullptr, kTwo, kNothing}).Gives(expected));
  for (const auto size :
       {+[](void*) -> std::int32_t { return -5; }, +[](void*) -> std::int32_t { return 100000; }}) {
    EXPECT_TRUE(run_with({kSize, nullptr, size, kNothing}).Gives(expected));
  }
  // More often than threads, and on the caller's alone.
  EXPECT_TRUE(
      run_with({kSize, nullptr, kTwo,
                [](void*, std::int32_t, void (*work)(void*), void* argument) -> std::int32_t {
                  for (int i = 0; i < 9; ++i) work(argument);
                  return 0;
                }})
          .Gives(expected));
  EXPECT_TRUE(run_with({kSize, nullptr, kTwo,
                        [](void*, std::int32_t, void (*)(void*), void*) { return 5; }})
                  .Says(SMYRF_ERROR_INTERNAL, "thread_pool: run gave 5"));
  EXPECT_TRUE(run_with({kSize, nullptr, kTwo,
                        [](void*, std::int32_t, void (*)(void*), void*) -> std::int32_t {
                          throw std::runtime_error("no threads today");
                        }})
                  .Says(SMYRF_ERROR_INTERNAL, "thread_pool: run threw: no threads today"));
  EXPECT_TRUE(run_with({kSize, nullptr,
                        [](void*) -> std::int32_t {
                          throw 5; /* NOLINT(bugprone-std-exception-baseclass) */
                        },
                        kNothing})
                  .Says(SMYRF_ERROR_INTERNAL, "thread_pool: size threw: an exception of"));
}

// Sanitizers need address space of their own.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
/// Exits with the status of a call that the system gives no more memory.
[[noreturn]] void CallWithoutMemory() {
  constexpr std::int64_t kRows = 1 << 20;
  const std::vector<float> row(8);
  smyrf_tensor rows = smyrf_rows(row.data(), SMYRF_FLOAT32, 1, 1, kRows, 8);
  rows.strides[2] = 0;
  auto call = Sized<smyrf_call>();
  call.query = call.key = call.value = &rows;
  call.method = "lsh";
  call.num_threads = 1;
  smyrf_plan* plan = nullptr;
  const rlimit none{1 << 20, 1 << 20};
  if (setrlimit(RLIMIT_AS, &none) != 0) std::exit(100);
  const smyrf_status status = smyrf_make_plan(&call, &plan);
  if (plan != nullptr) std::exit(101);
  std::fputs(smyrf_last_error(), stderr);
  std::exit(status);
}

TEST(CHostile, NoMemory) {
  EXPECT_EXIT(CallWithoutMemory(), ::testing::ExitedWithCode(SMYRF_ERROR_NO_MEMORY),
              "out of memory");
}
#endif

TEST(CHostile, MessagesAreOfTheThreadAndStay) {
  EXPECT_EQ(smyrf_plan_load(nullptr, nullptr), SMYRF_ERROR_VALUE);
  const std::string here = smyrf_last_error();
  std::string there = "not asked";
  std::thread([&] { there = smyrf_last_error(); }).join();
  EXPECT_EQ(there, "");
  EXPECT_EQ(Changed([](smyrf_call&, smyrf_outputs&) {}).status, SMYRF_OK);
  EXPECT_EQ(smyrf_last_error(), here);
  // Cut off, and ended.
  const std::string path(5000, 'x');
  smyrf_plan* plan = nullptr;
  EXPECT_EQ(smyrf_plan_load(path.c_str(), &plan), SMYRF_ERROR_VALUE);
  EXPECT_EQ(std::strlen(smyrf_last_error()), 2047U);
}

}  // namespace
}  // namespace smyrf::testing
