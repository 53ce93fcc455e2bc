// Makes one named call on one thread inside smyrf_measured, whose instructions
// benchmarks/instructions.py counts; a short call a hundred times, after others that warm up.
// Valgrind takes a microsecond a multiply-add, hence the sizes. Without a name it lists the names.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "smyrf/smyrf.h"

namespace {

using smyrf::Contiguous;
using smyrf::DType;

constexpr std::int64_t kDepth = 64;  // of queries, keys and values

enum class What : std::uint8_t { kForward, kPlan, kForwardWithPlan, kBackward, kMerge };

struct Case {
  const char* name;
  What what = What::kForward;
  smyrf::Method method = smyrf::Method::kDense;
  std::int64_t queries = 512;
  std::int64_t keys = 512;
  DType dtype = DType::kFloat32;
  bool is_causal = false;
  bool has_mask = false;
  int repeats = 1;
};

constexpr smyrf::Method kLsh = smyrf::Method::kLsh;
constexpr smyrf::Method kTree = smyrf::Method::kTree;

constexpr Case kCases[] = {
    {.name = "dense", .queries = 1024, .keys = 1024},
    {.name = "dense_causal", .is_causal = true},
    {.name = "dense_mask", .has_mask = true},
    {.name = "dense_float16", .dtype = DType::kFloat16},
    {.name = "dense_bfloat16", .dtype = DType::kBFloat16},
    {.name = "few_queries", .queries = 8, .keys = 8192},
    {.name = "one_query", .queries = 1, .keys = 64, .repeats = 100},
    {.name = "lsh", .method = kLsh, .queries = 1024, .keys = 1024},
    {.name = "tree", .method = kTree, .queries = 2048, .keys = 2048},
    {.name = "tree_plan", .what = What::kPlan, .method = kTree, .queries = 2048, .keys = 2048},
    {.name = "tree_with_plan",
     .what = What::kForwardWithPlan,
     .method = kTree,
     .queries = 2048,
     .keys = 2048},
    {.name = "dense_backward", .what = What::kBackward},
    {.name = "dense_causal_backward", .what = What::kBackward, .is_causal = true},
    {.name = "dense_mask_backward", .what = What::kBackward, .has_mask = true},
    {.name = "dense_float16_backward", .what = What::kBackward, .dtype = DType::kFloat16},
    {.name = "dense_bfloat16_backward", .what = What::kBackward, .dtype = DType::kBFloat16},
    {.name = "few_queries_backward", .what = What::kBackward, .queries = 8, .keys = 8192},
    {.name = "one_query_backward",
     .what = What::kBackward,
     .queries = 1,
     .keys = 64,
     .repeats = 100},
    {.name = "lsh_backward", .what = What::kBackward, .method = kLsh},
    {.name = "tree_backward",
     .what = What::kBackward,
     .method = kTree,
     .queries = 2048,
     .keys = 2048},
    {.name = "merge", .what = What::kMerge, .repeats = 100},
    {.name = "merge_bfloat16", .what = What::kMerge, .dtype = DType::kBFloat16, .repeats = 100},
};

/// (1, 1, rows, columns) in 4 bytes an element, of which narrow dtypes use half.
class Rows {
 public:
  Rows(DType dtype, std::int64_t rows, std::int64_t columns = kDepth)
      : dtype_(dtype),
        rows_(rows),
        columns_(columns),
        memory_(static_cast<std::size_t>(rows * columns)) {}

  /// A multiple of 1/64 from -4 to 4, so that every dtype holds it.
  void Set(std::int64_t row, std::int64_t column, double value) {
    const auto at = static_cast<std::size_t>(row * columns_ + column);
    const auto x = static_cast<float>(std::round(value * 64.0) / 64.0);
    if (dtype_ == DType::kFloat32) {
      memory_[at] = x;
      return;
    }
    std::uint32_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    std::uint32_t narrow = bits >> 16U;
    if (dtype_ == DType::kFloat16) {
      // The exponent's bias is 15 in place of 127; zero stays zero.
      narrow = (bits >> 16U & 0x8000U) |
               (x == 0.0F ? 0U : ((bits & 0x7FFFFFFFU) >> 13U) - (112U << 10U));
    }
    const auto half = static_cast<std::uint16_t>(narrow);
    std::memcpy(reinterpret_cast<std::uint16_t*>(memory_.data()) + at, &half, sizeof half);
  }
  smyrf::TensorView view() const {
    return Contiguous<const void>(memory_.data(), dtype_, {1, 1, rows_, columns_});
  }
  smyrf::MutableTensorView mutable_view() {
    return Contiguous<void>(memory_.data(), dtype_, {1, 1, rows_, columns_});
  }

 private:
  DType dtype_;
  std::int64_t rows_;
  std::int64_t columns_;
  std::vector<float> memory_;
};

class Calls {
 public:
  explicit Calls(const Case& of)
      : case_(of),
        query_(of.dtype, of.queries),
        key_(of.dtype, of.keys),
        value_(of.dtype, of.keys),
        out_(of.dtype, of.queries),
        grad_out_(of.dtype, of.queries),
        grad_query_(of.dtype, of.queries),
        grad_key_(of.dtype, of.keys),
        grad_value_(of.dtype, of.keys),
        mask_(DType::kFloat32, of.has_mask ? of.queries : 0, of.keys),
        lse_(static_cast<std::size_t>(of.queries)),
        other_lse_(lse_) {
    Fill();
    options_.method = of.method;
    options_.is_causal = of.is_causal;
    options_.num_threads = 1;
    arguments_ = {query_.view(), key_.view(), value_.view()};
    if (of.has_mask) arguments_.attn_mask = mask_.view();
    plan_ = smyrf::plan(arguments_, options_);
    if (of.method == kTree && plan_.density(0, 0) == 1.0) {
      throw std::runtime_error("tree went dense, so that this would count dense's kernels");
    }
    if (of.what == What::kBackward || of.what == What::kMerge) Forward(&plan_);
  }

  void Run() {
    for (int i = 0; i < case_.repeats; ++i) {
      switch (case_.what) {
        case What::kForward:
          Forward(nullptr);
          break;
        case What::kPlan:
          plan_ = smyrf::plan(arguments_, options_);
          break;
        case What::kForwardWithPlan:
          Forward(&plan_);
          break;
        case What::kBackward:
          smyrf::attention_backward(
              arguments_, options_, out_.view(), Lse(lse_), grad_out_.view(), {},
              {grad_query_.mutable_view(), grad_key_.mutable_view(), grad_value_.mutable_view()},
              &plan_);
          break;
        case What::kMerge:
          smyrf::merge(out_.mutable_view(), mutable_lse_view(), grad_out_.view(), Lse(other_lse_),
                       1);
          break;
      }
    }
  }

 private:
  /// Points of a plane in D dimensions, so that `tree` needs few nodes; values are smooth there.
  void Fill() {
    // A linear congruential generator (Knuth's MMIX): the same numbers everywhere.
    std::uint64_t state = 1;
    const auto number = [&] {
      state = state * 6364136223846793005U + 1442695040888963407U;
      return static_cast<double>(state >> 32U) * 0x1p-31 - 1.0;
    };
    std::vector<double> plane(4 * kDepth);
    for (double& x : plane) x = number();
    const auto fill = [&](Rows& rows, std::int64_t count, Rows* values) {
      for (std::int64_t i = 0; i < count; ++i) {
        const double x = number();
        const double y = number();
        const auto at = [&](std::int64_t c) {
          const auto offset = static_cast<std::size_t>(2 * c);
          return x * plane[offset] + y * plane[offset + 1];
        };
        for (std::int64_t c = 0; c < kDepth; ++c) rows.Set(i, c, at(c));
        for (std::int64_t c = 0; values != nullptr && c < kDepth; ++c)
          values->Set(i, c, at(kDepth + c));
      }
    };
    fill(query_, case_.queries, nullptr);
    fill(key_, case_.keys, &value_);
    fill(grad_out_, case_.queries, nullptr);
    for (std::int64_t i = 0; case_.has_mask && i < case_.queries; ++i) {
      for (std::int64_t j = 0; j < case_.keys; ++j) mask_.Set(i, j, number());
    }
  }
  smyrf::TensorView Lse(const std::vector<float>& lse) const {
    return Contiguous<const void>(lse.data(), DType::kFloat32, {1, 1, case_.queries});
  }
  smyrf::MutableTensorView mutable_lse_view() {
    return Contiguous<void>(lse_.data(), DType::kFloat32, {1, 1, case_.queries});
  }
  void Forward(const smyrf::Plan* plan) {
    smyrf::attention(arguments_, options_, {out_.mutable_view(), mutable_lse_view()}, plan);
  }

  const Case& case_;
  Rows query_, key_, value_, out_, grad_out_, grad_query_, grad_key_, grad_value_, mask_;
  std::vector<float> lse_, other_lse_;
  smyrf::Options options_;
  smyrf::Arguments arguments_;
  smyrf::Plan plan_;
};

volatile int measured = 0;

}  // namespace

/// Counting begins and ends with this function, so it must be one, with an end of its own.
extern "C" [[gnu::noinline]] void smyrf_measured(const std::function<void()>& body) {
  body();
  measured = measured + 1;
}

int main(int count, char** words) try {  // NOLINT(misc-const-correctness)
  for (const Case& of : kCases) {
    if (count == 1) std::puts(of.name);
    if (count == 1 || std::strcmp(words[1], of.name) != 0) continue;
    Calls calls(of);
    if (of.repeats > 1) calls.Run();
    smyrf_measured([&] { calls.Run(); });
    std::puts(smyrf::instruction_sets()[0].c_str());
    return 0;
  }
  return count == 1 ? 0 : 2;
} catch (const std::exception& error) {
  std::fputs(error.what(), stderr);
  return 1;
}
