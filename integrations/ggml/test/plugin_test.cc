// The plug-in in a host of our own, which runs under the sanitizers: exact against float64, and
// hostile.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fake_host.h"
#include "node.h"

namespace smyrf::ggml::testing {
namespace {

class Plugin : public ::testing::Test {
 protected:
  void SetUp() override {
    TheFakeHost() = {};
    for (const char* name : {"SMYRF_METHOD", "SMYRF_TOLERANCE", "SMYRF_LOG"}) unsetenv(name);
    setenv("SMYRF_METHOD", "dense", 1);
    registry_ = Load();
    ASSERT_NE(registry_, nullptr) << TheFakeHost().log;
    device_ = registry_->iface.get_device(registry_, 0);
    backend_ = NewBackend(2);
  }
  void TearDown() override {
    if (backend_ != nullptr) backend_->iface.free(backend_);
  }

  ggml_backend_t NewBackend(int threads) const {
    ggml_backend_t made = device_->iface.init_backend(device_, nullptr);
    if (made != nullptr)
      Setter<void(ggml_backend_t, int)>("ggml_backend_set_n_threads")(made, threads);
    return made;
  }
  template <class Function>
  Function* Setter(const char* name) const {
    return reinterpret_cast<Function*>(registry_->iface.get_proc_address(registry_, name));
  }
  bool Takes(Node& node) const { return device_->iface.supports_op(device_, &node.ggml()); }
  static ggml_status Compute(ggml_backend_t backend, std::vector<ggml_tensor*> nodes) {
    ggml_cgraph graph{std::move(nodes)};
    return backend->iface.graph_compute(backend, &graph);
  }
  void ExpectExact(Node& node) const {
    ASSERT_TRUE(Takes(node));
    ASSERT_EQ(Compute(backend_, {&node.ggml()}), GGML_STATUS_SUCCESS) << TheFakeHost().log;
    EXPECT_LE(node.Error(), 2e-6);
  }

  ggml_backend_reg_t registry_ = nullptr;
  ggml_backend_dev_t device_ = nullptr;
  ggml_backend_t backend_ = nullptr;
};

double Where(bool seen) { return seen ? 0.0 : -kInfinity; }

/// Masks of 40 queries, the last of which is at key 83, and 96 keys.
const std::vector<std::pair<const char*, Node::Mask>>& Masks() {
  static const std::vector<std::pair<const char*, Node::Mask>> masks{
      {"none", {}},
      {"everything", [](auto, auto) { return 0.0; }},
      {"nothing", [](auto, auto) { return -kInfinity; }},
      {"causal", [](auto i, auto j) { return Where(j <= i + 44); }},
      {"causal from the first key", [](auto i, auto j) { return Where(j <= i); }},
      {"window", [](auto i, auto j) { return Where(j <= i + 44 && j > i + 34); }},
      {"window of one", [](auto i, auto j) { return Where(j == i); }},
      {"padding", [](auto, auto j) { return Where(j >= 3 && j < 80); }},
      {"the last key alone", [](auto, auto j) { return Where(j == 95); }},
      {"two texts", [](auto i, auto j) { return Where(j <= i + 44 && (i < 20 || j >= 64)); }},
      {"every other key", [](auto i, auto j) { return Where((i + j) % 2 == 0); }},
      {"every third query blind", [](auto i, auto j) { return Where(i % 3 > 0 && j <= i + 44); }},
      {"blind at the end", [](auto i, auto j) { return Where(i < 30 && j <= i + 44); }},
      {"slopes",
       [](auto i, auto j) { return j <= i + 44 ? -0.125 * double(i + 44 - j) : -kInfinity; }},
      {"large and small", [](auto i, auto j) { return (i + j) % 3 == 0 ? -60000.0 : -1e-7; }},
  };
  return masks;
}

TEST_F(Plugin, IsExactWithEveryMask) {
  for (const auto& [name, mask] : Masks()) {
    SCOPED_TRACE(name);
    Node node({}, mask);
    ExpectExact(node);
  }
}

TEST_F(Plugin, IsExactWithEveryShape) {
  const Node::Mask causal = [](auto i, auto j) { return Where(j <= i + 3); };
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
    for (const Shape& shape : {
             Shape{.queries = 16, .keys = 19, .type = type},
             Shape{.heads = 6,
                   .key_heads = 1,
                   .queries = 17,
                   .keys = 33,
                   .depth = 1,
                   .value_depth = 3,
                   .type = type},
             Shape{.heads = 1,
                   .key_heads = 1,
                   .queries = 65,
                   .keys = 67,
                   .depth = 72,
                   .value_depth = 64,
                   .type = type},
             Shape{.streams = 3, .mask_streams = 3, .type = type},
             Shape{.streams = 4, .mask_heads = 4, .mask_streams = 2, .type = type},
         }) {
      for (const Node::Mask& mask : {Node::Mask{}, causal}) {
        Node node(shape, mask);
        ExpectExact(node);
      }
    }
  }
}

Node LaterChunk() {
  // As few earlier pairs as go by `tree`.
  const Shape shape{.heads = 2, .key_heads = 1, .queries = 1024, .keys = 3400, .depth = 16};
  return {shape, [](auto i, auto j) { return Where(j <= i + 2304); }};
}

TEST_F(Plugin, TreeAnswersLaterChunks) {
  ASSERT_TRUE(Setter<bool(const char*)>("smyrf_set_method")("tree"));
  ASSERT_TRUE(Setter<bool(double)>("smyrf_set_tolerance")(0.1));
  Node node = LaterChunk();
  ASSERT_TRUE(Takes(node));
  ASSERT_EQ(Compute(backend_, {&node.ggml()}), GGML_STATUS_SUCCESS) << TheFakeHost().log;
  // In rows without structure `tree` opens every node: earlier keys, own keys and their merge are
  // exact, each key counted once.
  EXPECT_LE(node.Error(), 2e-6);
}

TEST_F(Plugin, LeavesToGgmlWhatItDoesNotTake) {
  const std::vector<std::pair<const char*, std::function<void(ggml_tensor&)>>> changes{
      {"another operation", [](auto& n) { n.op = GGML_OP_MUL_MAT; }},
      {"few queries", [](auto& n) { n.src[0]->ne[1] = n.ne[2] = 15; }},
      {"ALiBi",
       [](auto& n) {
         const float x = 8.0F;
         std::memcpy(&n.op_params[1], &x, 4);
       }},
      {"soft cap",
       [](auto& n) {
         const float x = 30.0F;
         std::memcpy(&n.op_params[2], &x, 4);
       }},
      {"sinks", [](auto& n) { n.src[4] = n.src[0]; }},
      {"float16 queries", [](auto& n) { n.src[0]->type = GGML_TYPE_F16; }},
      {"quantised keys", [](auto& n) { n.src[1]->type = n.src[2]->type = GGML_TYPE_Q8_0; }},
      {"two dtypes", [](auto& n) { n.src[2]->type = GGML_TYPE_BF16; }},
      {"transposed values", [](auto& n) { std::swap(n.src[2]->nb[0], n.src[2]->nb[1]); }},
      {"a stride between elements", [](auto& n) { ++n.src[1]->nb[2]; }},
      {"depths that differ", [](auto& n) { --n.src[1]->ne[0]; }},
      {"wide heads", [](auto& n) { n.src[0]->ne[0] = n.src[1]->ne[0] = 4096; }},
      {"no keys", [](auto& n) { n.src[1]->ne[1] = n.src[2]->ne[1] = 0; }},
      {"fewer values", [](auto& n) { --n.src[2]->ne[1]; }},
      {"heads that don't divide", [](auto& n) { n.src[1]->ne[2] = n.src[2]->ne[2] = 3; }},
      {"no heads", [](auto& n) { n.src[1]->ne[2] = n.src[2]->ne[2] = 0; }},
      {"streams that differ", [](auto& n) { n.src[0]->ne[3] = n.ne[3] = 2; }},
      {"a mask of float32", [](auto& n) { n.src[3]->type = GGML_TYPE_F32; }},
      {"a mask of fewer queries", [](auto& n) { --n.src[3]->ne[1]; }},
      {"a mask of fewer keys", [](auto& n) { --n.src[3]->ne[0]; }},
      {"a mask of two heads", [](auto& n) { n.src[3]->ne[2] = 2; }},
      {"out in float16", [](auto& n) { n.type = GGML_TYPE_F16; }},
      {"out with gaps", [](auto& n) { n.nb[1] += 4; }},
      {"out of another shape", [](auto& n) { ++n.ne[2]; }},
  };
  for (const auto& [name, change] : changes) {
    SCOPED_TRACE(name);
    Node node({}, [](auto, auto) { return 0.0; });
    ASSERT_TRUE(Takes(node));
    change(node.ggml());
    EXPECT_FALSE(Takes(node));
    // Nor does it compute such a node where a host asks for it all the same.
    TheFakeHost().log.clear();
    EXPECT_EQ(Compute(backend_, {&node.ggml()}), GGML_STATUS_FAILED);
    EXPECT_NE(TheFakeHost().log.find("doesn't take"), std::string::npos);
  }
}

TEST_F(Plugin, PassesOverViewsAndNodesThatAreNotAskedFor) {
  Node node({}, {});
  Node idle({}, {});
  idle.ggml().flags = 0;
  ggml_tensor view{};
  view.op = GGML_OP_PERMUTE;
  view.flags = GGML_TENSOR_FLAG_COMPUTE;
  EXPECT_TRUE(device_->iface.supports_op(device_, &view));
  ASSERT_EQ(Compute(backend_, {&view, &idle.ggml(), &node.ggml()}), GGML_STATUS_SUCCESS);
  EXPECT_LE(node.Error(), 2e-6);
  EXPECT_TRUE(std::isnan(idle.Error()));
}

TEST_F(Plugin, RefusesHostsThatItWasNotBuiltFor) {
  const auto refused = [](const char* reason) {
    const ggml_backend_reg_t loaded = Load();
    const std::string log = std::exchange(TheFakeHost(), {}).log;
    return loaded == nullptr && log.find(reason) != std::string::npos;
  };
  const std::string built = SMYRF_GGML_VERSION;
  const std::vector<std::string> versions{"0.25.9", "1.0.0", "", built, built + "1.0"};
  for (const std::string& version : versions) {
    TheFakeHost().version = version;
    EXPECT_TRUE(refused("build the plug-in with the host's headers")) << version;
  }
  TheFakeHost().renamed = GGML_OP_PERMUTE;
  EXPECT_TRUE(refused("numbers its operations otherwise"));
  TheFakeHost().tensor_overhead = sizeof(ggml_tensor) - 8;
  EXPECT_TRUE(refused("numbers its operations otherwise"));
  EXPECT_NE(Load(), nullptr);
}

TEST_F(Plugin, RefusesASecondGgmlInTheProcess) {
  EXPECT_FALSE(LoadInSecondHost());
  EXPECT_NE(TheFakeHost().log.find("load it in one of them"), std::string::npos)
      << TheFakeHost().log;
  // The first goes on with functions of its own: it counts nodes, and names what isn't taken.
  Node node({}, {});
  ExpectExact(node);
  TheFakeHost().renamed = GGML_OP_FLASH_ATTN_EXT;
  node.ggml().src[4] = node.ggml().src[0];
  EXPECT_EQ(Compute(backend_, {&node.ggml()}), GGML_STATUS_FAILED);
  EXPECT_NE(TheFakeHost().log.find("ANOTHER"), std::string::npos) << TheFakeHost().log;
}

TEST_F(Plugin, RefusesBadEnvironments) {
  using Pair = std::pair<const char*, const char*>;
  for (const auto& [name, value] : {
           Pair{"SMYRF_METHOD", "lsh"},
           Pair{"SMYRF_METHOD", ""},
           Pair{"SMYRF_METHOD", "Dense"},
           Pair{"SMYRF_TOLERANCE", ""},
           Pair{"SMYRF_TOLERANCE", "5%"},
           Pair{"SMYRF_TOLERANCE", "1"},
           Pair{"SMYRF_TOLERANCE", "-1e-9"},
           Pair{"SMYRF_TOLERANCE", "nan"},
           Pair{"SMYRF_TOLERANCE", "inf"},
           Pair{"SMYRF_TOLERANCE", ".1 .2"},
       }) {
    setenv(name, value, 1);
    TheFakeHost().log.clear();
    EXPECT_EQ(Load(), nullptr) << name << "=" << value;
    EXPECT_NE(TheFakeHost().log.find(name), std::string::npos) << TheFakeHost().log;
    unsetenv(name);
  }
  EXPECT_NE(Load(), nullptr);
}

TEST_F(Plugin, WritesASummaryOfItsCalls) {
  Setter<void(bool)>("smyrf_set_log")(true);
  ASSERT_NE(Load(), nullptr);  // without SMYRF_LOG: what the setter said holds
  Node node({}, {});
  ASSERT_EQ(Compute(backend_, {&node.ggml(), &node.ggml()}), GGML_STATUS_SUCCESS);
  ::testing::internal::CaptureStderr();
  backend_->iface.free(std::exchange(backend_, nullptr));
  EXPECT_EQ(::testing::internal::GetCapturedStderr().rfind("smyrf: exact: 2 calls, ", 0), 0U);
  Setter<void(bool)>("smyrf_set_log")(false);
}

TEST_F(Plugin, BackendsComputeAtTheSameTime) {
  const Node::Mask causal = [](auto i, auto j) { return Where(j <= i + 44); };
  std::vector<std::thread> threads;
  std::array<double, 4> errors{};
  threads.reserve(errors.size());
  for (double& error : errors) {
    threads.emplace_back([&] {
      ggml_backend_t backend = NewBackend(3);
      for (int repeat = 0; repeat < 3; ++repeat) {
        Node node({.queries = 100, .keys = 144}, causal);
        if (Compute(backend, {&node.ggml()}) != GGML_STATUS_SUCCESS) error = kInfinity;
        error = std::max(error, node.Error());
      }
      backend->iface.free(backend);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const double error : errors) EXPECT_LE(error, 2e-6);
}

TEST_F(Plugin, FailsWithASentenceWhereMemoryRunsOut) {
  Setter<void(bool)>("smyrf_set_log")(true);
  for (const bool tree : {false, true}) {
    SCOPED_TRACE(tree);
    Setter<bool(const char*)>("smyrf_set_method")(tree ? "tree" : "dense");
    Node node = tree ? LaterChunk() : Node({.queries = 150}, [](auto, auto) { return 0.0; });
    ggml_cgraph graph{{&node.ggml()}};
    int failures = 0;
    for (std::int64_t count = 0;; count += 1 + count / 4) {
      TheFakeHost().log.assign(200, ' ');  // has room for a line
      TheFakeHost().log.clear();
      FailAllocationAfter(count);
      const ggml_status status = backend_->iface.graph_compute(backend_, &graph);
      FailAllocationAfter(-1);
      if (status == GGML_STATUS_SUCCESS) break;
      ASSERT_EQ(status, GGML_STATUS_ALLOC_FAILED) << TheFakeHost().log;
      EXPECT_EQ(TheFakeHost().log, "smyrf: not enough memory for attention\n");
      ++failures;
    }
    EXPECT_GE(failures, tree ? 5 : 2);  // calls before this one left memory
    EXPECT_LE(node.Error(), 2e-6);
  }
  Setter<void(bool)>("smyrf_set_log")(false);
  for (std::int64_t count = 0; count < 2; ++count) {
    FailAllocationAfter(count);
    ggml_backend_t made = device_->iface.init_backend(device_, nullptr);
    FailAllocationAfter(-1);
    EXPECT_EQ(made, nullptr);
  }
}

}  // namespace
}  // namespace smyrf::ggml::testing
