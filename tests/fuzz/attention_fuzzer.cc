// libFuzzer's entry: one call of the library from the fuzzer's bytes. Sanitizers watch the memory;
// oracle.h knows what must hold for the result.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/archive.h"
#include "damaged_plan.h"
#include "fuzzed_call.h"
#include "oracle.h"
#include "smyrf/smyrf.h"

namespace smyrf::fuzz {
namespace {

/// Without a plan.
void FuzzAttention(Bytes& bytes, const FuzzedCall& fuzzed) {
  const bool threads = bytes.Rarely(1);
  const std::optional<Result> result = Run(fuzzed.call, fuzzed.out_layout);
  if (!result) return Require(!fuzzed.is_legal, fuzzed.call, "a legal call was refused");
  RequireContract(fuzzed.call, *result);
  if (!threads) return;
  Call other = fuzzed.call;
  other.options.num_threads = fuzzed.call.options.num_threads == 1 ? 2 : 1;
  const std::optional<Result> same = Run(other, fuzzed.out_layout);
  Require(same && same->SameBits(*result), fuzzed.call, "other bits on other threads");
}

std::optional<PlanParts> MakePlan(const FuzzedCall& fuzzed) {
  try {
    return Unpack(plan(fuzzed.call.arguments(), fuzzed.call.options));
  } catch (const Error& error) {
    RequireRefusal(fuzzed.call, error, true);
    Require(!fuzzed.is_legal, fuzzed.call, "a legal call was refused");
    return std::nullopt;
  }
}

void FuzzPlan(const FuzzedCall& fuzzed) {
  const std::optional<PlanParts> made = MakePlan(fuzzed);
  const std::optional<Result> direct = Run(fuzzed.call, fuzzed.out_layout);
  Require(made.has_value() == direct.has_value(), fuzzed.call, "plan and attention disagree");
  if (!made) return;
  RequirePlanned(fuzzed.call, *made, *direct, fuzzed.out_layout);
  Plan kept;
  const Result again = testing::Attend(fuzzed.call, nullptr, fuzzed.out_layout, &kept);
  Require(again.SameBits(*direct), fuzzed.call, "another result where the plan is kept");
  RequirePlanned(fuzzed.call, Unpack(kept), *direct, fuzzed.out_layout);
}

/// Gradients of whatever attention took, without a plan and with one, on some threads and others.
void FuzzBackward(Bytes& bytes, const FuzzedCall& fuzzed) {
  const std::optional<Result> result = Run(fuzzed.call, Layout::kContiguous);
  if (!result) return;
  Random random(bytes.Any<std::uint16_t>());
  testing::Upstream upstream = testing::RandomUpstream(random, fuzzed.call, bytes.Rarely(1));
  if (bytes.Rarely()) FuzzElements(bytes, upstream.out);
  const auto got = testing::Backward(fuzzed.call, *result, upstream, nullptr, fuzzed.out_layout);
  RequireGradients(fuzzed.call, *result, upstream, got);
  Call other = fuzzed.call;
  other.options.num_threads = fuzzed.call.options.num_threads == 1 ? 2 : 1;
  const Plan made = plan(other.arguments(), other.options);
  const auto same = testing::Backward(other, *result, upstream, &made, fuzzed.out_layout);
  Require(same.SameBits(got), fuzzed.call, "other gradients by a plan and on other threads");
}

/// Refused, or carried out within bounds with every row written: what was damaged, as constants or
/// the order of a list, may only have changed what each query evaluates.
void FuzzDamagedPlan(Bytes& bytes, const FuzzedCall& fuzzed) {
  std::optional<PlanParts> made = MakePlan(fuzzed);
  if (!made) return;
  DamagePlan(bytes, *made);
  Call call = fuzzed.call;
  call.options = {};
  call.options.scale = fuzzed.call.options.scale;
  call.options.enable_gqa = fuzzed.call.options.enable_gqa;
  call.options.num_threads = fuzzed.call.options.num_threads;
  const std::optional<Result> result = Run(call, Layout::kContiguous, &*made);
  if (!result) return;
  RequireReferenceOfPlan(call, *result, *made);
  Random random(1);
  const testing::Upstream upstream = testing::RandomUpstream(random, call, false);
  (void)testing::Backward(call, *result, upstream, &*made, fuzzed.out_layout);
}

/// Bytes of a saved plan that were damaged behind the checksum's back: refused, or a plan that can
/// be carried out.
void FuzzDamagedBytes(Bytes& bytes, const FuzzedCall& fuzzed) {
  const std::optional<PlanParts> made = MakePlan(fuzzed);
  if (!made) return;
  std::string saved = Pack(PlanParts(*made)).to_bytes();
  saved.resize(saved.size() - sizeof(std::uint64_t));
  for (int n = bytes.Between(1, 4); n > 0; --n) {
    saved[bytes.Between<std::size_t>(0, saved.size() - 1)] ^= bytes.Any<char>();
  }
  if (bytes.Rarely()) saved.resize(bytes.Between<std::size_t>(0, saved.size()));
  const std::uint64_t sum = Checksum(saved);
  saved.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
  try {
    const Plan plan = Plan::from_bytes(saved);
    Call call = fuzzed.call;
    call.options = {};
    call.options.scale = fuzzed.call.options.scale;
    call.options.enable_gqa = fuzzed.call.options.enable_gqa;
    (void)Run(call, Layout::kContiguous, &plan);
  } catch (const Error& error) {
    Require(std::string_view(error.what()).starts_with("plan: "), fuzzed.call,
            "a message that does not name the plan");
  }
}

template <class View>
void DamageView(Bytes& bytes, View& view, bool is_mask) {
  const auto dimension = bytes.Between<std::size_t>(0, 3);
  switch (bytes.Between(0, 5)) {
    case 0: {
      // A mask of a wider type would be a lie about its memory.
      const auto dtype = static_cast<DType>(bytes.Between(0, 4));
      if (!is_mask || SizeOf(dtype) <= SizeOf(view.dtype)) view.dtype = dtype;
      break;
    }
    case 1:
      view.rank = bytes.Between(-1, 5);
      break;
    case 2: {
      // Other tensors give away a size that is too large, unless a mask broadcasts.
      const auto size = bytes.Of<std::int64_t>(
          {0, 1, 2, -1, 1000000, std::int64_t{1} << 40, std::numeric_limits<std::int64_t>::max()});
      if (!is_mask || size < view.shape[dimension] || size > 100000) view.shape[dimension] = size;
      break;
    }
    case 3:
      view.data = nullptr;
      break;
    case 4:
      if (view.dtype == DType::kBool || view.data == nullptr) break;
      view.data = static_cast<decltype(view.data)>(
          static_cast<
              std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(view.data)>>,
                                 const std::byte*, std::byte*>>(view.data) +
          1);
      break;
    default:
      // Past the end of any memory, unless there is one index only.
      view.strides[dimension] = bytes.Of<std::int64_t>(
          {std::int64_t{1} << 62, -(std::int64_t{1} << 62),
           std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()});
      break;
  }
}

void FuzzViews(Bytes& bytes, const FuzzedCall& fuzzed) {
  const Call& call = fuzzed.call;
  const Shape& s = call.shape;
  Arguments arguments = call.arguments();
  Tensor out(call.query.dtype(), {s.batch, s.query_heads, s.queries, s.value_depth},
             fuzzed.out_layout);
  std::vector<float> lse(call.rows());
  Outputs outputs{out.mutable_view(), Contiguous<void>(lse.data(), DType::kFloat32,
                                                       {s.batch, s.query_heads, s.queries})};
  switch (bytes.Between(0, 9)) {
    case 0:
      DamageView(bytes, arguments.query, false);
      break;
    case 1:
      DamageView(bytes, arguments.key, false);
      break;
    case 2:
      DamageView(bytes, arguments.value, false);
      break;
    case 3:
      if (arguments.attn_mask) DamageView(bytes, *arguments.attn_mask, true);
      break;
    case 4:
      if (arguments.key_padding_mask) DamageView(bytes, *arguments.key_padding_mask, true);
      break;
    case 5:
      if (arguments.query_padding_mask) DamageView(bytes, *arguments.query_padding_mask, true);
      break;
    case 6:
      DamageView(bytes, outputs.out, false);
      break;
    case 7:
      DamageView(bytes, *outputs.lse, false);
      break;
    case 8:
      outputs.lse->data = outputs.out.data;
      break;
    default: {
      const auto dimension = bytes.Between<std::size_t>(0, 2);
      std::int64_t& stride = outputs.out.strides[dimension];
      stride = bytes.Of<std::int64_t>({0, 1, -1});
      // Back from the last of a row of single elements is a sound view.
      if (stride < 0 && outputs.out.data != nullptr && outputs.out.shape[dimension] > 0) {
        outputs.out.data = static_cast<std::byte*>(outputs.out.data) +
                           (outputs.out.shape[dimension] - 1) * SizeOf(outputs.out.dtype);
      }
      break;
    }
  }
  const std::vector<std::byte> before = out.memory();
  try {
    attention(arguments, call.options, outputs);
  } catch (const Error& error) {
    RequireRefusal(call, error, out.memory() == before);
  }
}

void FuzzOne(Bytes& bytes) {
  static const std::vector<std::string> sets = instruction_sets();
  // The best, but for some: without vectors it is slow.
  const std::size_t last = bytes.Rarely(3) ? sets.size() - 1 : 0;
  force_instruction_set(sets[bytes.Between<std::size_t>(0, last)]);
  const int what = bytes.Between(0, 9);
  const FuzzedCall fuzzed = FuzzCall(bytes);
  if (what < 3) {
    FuzzAttention(bytes, fuzzed);
  } else if (what < 5) {
    FuzzPlan(fuzzed);
  } else if (what < 7) {
    bytes.Rarely(1) ? FuzzDamagedBytes(bytes, fuzzed) : FuzzDamagedPlan(bytes, fuzzed);
  } else if (what < 9) {
    FuzzBackward(bytes, fuzzed);
  } else {
    FuzzViews(bytes, fuzzed);
  }
}

}  // namespace
}  // namespace smyrf::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  smyrf::fuzz::Bytes bytes(data, size);
  smyrf::fuzz::FuzzOne(bytes);
  return 0;
}
