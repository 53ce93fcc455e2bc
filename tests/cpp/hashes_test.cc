// Exact: out, lse, gradients and plans have the bits that they had when tests/data/hashes.txt was
// written, for 1, 2 and 3 threads. It shows that a change of the code's structure changes no
// result.
//
// A line of the file: a call, hashes of its plan, of forward and of backward, and the instruction
// sets that give them. Bits also depend on compiler, optimisation and the C library's functions:
// the file's first line names the build that it is of, and others skip it. This writes what this
// machine gives:
//   export SMYRF_WRITE_HASHES=tests/data/hashes.txt
//   build/release/tests/smyrf_tests --gtest_filter='Hashes.*'
// Lines of instruction sets that the machine lacks stay.
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <iomanip>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "testing/hash.h"
#include "testing/hashed_calls.h"

namespace smyrf::testing {
namespace {

struct Hashes {
  std::uint32_t plan = 0;
  std::uint32_t forward = 0;
  std::uint32_t backward = 0;

  auto operator<=>(const Hashes&) const = default;
};

std::ostream& operator<<(std::ostream& stream, const Hashes& hashes) {
  const auto put = [&](std::uint32_t x) { stream << std::setw(8) << x; };
  const auto flags = stream.flags();
  const char fill = stream.fill('0');
  stream << std::hex;
  put(hashes.plan);
  stream << ' ';
  put(hashes.forward);
  stream << ' ';
  put(hashes.backward);
  stream.flags(flags);
  stream.fill(fill);
  return stream;
}

/// By call ("lsh.007") and instruction set.
using Table = std::map<std::string, std::map<std::string, Hashes>>;

struct File {
  std::string build;
  Table table;
};

std::string ThisBuild() {
  std::string build = SMYRF_BUILD_NAME;
#if defined(__GLIBC__)
  build += ", glibc " + std::to_string(__GLIBC__) + "." + std::to_string(__GLIBC_MINOR__);
#endif
  return build;
}

constexpr char kBuild[] = "# build: ";

File Read(const std::string& path) {
  File read;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(kBuild)) read.build = line.substr(sizeof kBuild - 1);
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    std::string call;
    Hashes hashes;
    words >> call >> std::hex >> hashes.plan >> hashes.forward >> hashes.backward;
    for (std::string set; words >> set;) read.table[call][set] = hashes;
  }
  return read;
}

void Write(const Table& table, const std::string& path) {
  std::ofstream file(path);
  file << kBuild << ThisBuild() << '\n'
       << "# call, hashes of plan, forward and backward, instruction sets: "
          "tests/cpp/hashes_test.cc\n";
  for (const auto& [call, sets] : table) {
    std::map<Hashes, std::string> names;
    for (const auto& [set, hashes] : sets) names[hashes] += " " + set;
    for (const auto& [hashes, set] : names) file << call << ' ' << hashes << set << '\n';
  }
}

struct HashedCall {
  Call call;
  Upstream upstream;
  std::size_t number = 0;
};

/// Of forward without a plan and with one made before, and of backward with it. Half of the calls
/// keep the plan that forward makes; some ask for an estimate and for backward without a plan.
Hashes HashesOf(const HashedCall& hashed) {
  const Call& call = hashed.call;
  const std::size_t n = hashed.number;
  Hash plan_hash;
  Hash forward;
  Hash backward;
  const Plan made = plan(call.arguments(), call.options);
  AddPlan(plan_hash, made);
  if (n % 4 == 1 && made.info().method != Method::kLsh) {
    AddStatistics(plan_hash, estimate(call.arguments(), call.options));
  }
  Plan kept;
  AddResult(forward, Attend(call, nullptr, Layout::kContiguous, n % 2 == 0 ? &kept : nullptr));
  if (n % 2 == 0) AddPlan(plan_hash, kept);
  const Result planned = Attend(call, &made);
  AddResult(forward, planned);
  if (call.query.dtype() == call.key.dtype()) {
    AddGradients(backward, Backward(call, planned, hashed.upstream, &made));
    if (n % 4 == 3) AddGradients(backward, Backward(call, planned, hashed.upstream));
  }
  return {plan_hash.value(), forward.value(), backward.value()};
}

/// The file's hashes, or those to write.
class HashTable {
 public:
  explicit HashTable(std::string group) : group_(std::move(group)) {
    const char* path = std::getenv("SMYRF_WRITE_HASHES");
    writes_ = path != nullptr;
    path_ = writes_ ? path : SMYRF_TEST_DATA "/hashes.txt";
    File file = Read(path_);
    build_ = writes_ ? ThisBuild() : file.build;
    if (file.build != ThisBuild()) return;
    table_ = std::move(file.table);
    for (auto& [call, sets] : table_) {
      for (const auto& [set, hashes] : sets) known_.insert(set);
      if (!writes_ || !call.starts_with(group_ + ".")) continue;
      for (const std::string& set : instruction_sets()) sets.erase(set);
    }
  }

  /// The build that the file is of.
  const std::string& build() const { return build_; }
  bool Knows(const std::string& set) const { return writes_ || known_.contains(set); }
  /// `of_threads`: hashes by 1, 2 and 3 threads of the group's call `number`.
  void Check(std::size_t number, const std::string& set, const std::array<Hashes, 3>& of_threads) {
    std::ostringstream text;
    text << group_ << '.' << std::setw(3) << std::setfill('0') << number;
    const std::string name = text.str();
    const auto differs = [&](const char* what) { differences_[set + what] += " " + name; };
    const Hashes& hashes = of_threads[0];
    if (of_threads[1] != hashes || of_threads[2] != hashes) differs(", over threads:");
    auto& sets = table_[name];
    if (writes_) {
      sets[set] = hashes;
      return;
    }
    const auto found = sets.find(set);
    if (found == sets.end()) {
      differs(", not in the file:");
      return;
    }
    if (hashes.plan != found->second.plan) differs(", plan:");
    if (hashes.forward != found->second.forward) differs(", out, lse or statistics:");
    if (hashes.backward != found->second.backward) differs(", gradients:");
  }
  void Finish() const {
    ASSERT_FALSE(table_.empty()) << path_ << " has no hashes";
    for (const auto& [what, calls] : differences_)
      ADD_FAILURE() << "Other bits on " << what << calls;
    if (writes_ && differences_.empty()) Write(table_, path_);
  }

 private:
  std::string group_;
  bool writes_ = false;
  std::string path_;
  std::string build_;
  Table table_;
  std::set<std::string> known_;
  std::map<std::string, std::string> differences_;
};

/// hashes_of(call, threads) of all calls on every instruction set, of every second one by portable
/// code.
template <class Calls, class HashesOfCall>
void CheckAll(const char* group, Calls& calls, const HashesOfCall& hashes_of) {
  HashTable table(group);
  ASSERT_FALSE(table.build().empty()) << "tests/data/hashes.txt names no build";
  if (table.build() != ThisBuild()) {
    GTEST_SKIP() << "tests/data/hashes.txt is of " << table.build() << "; this is " << ThisBuild();
  }
  std::string unknown;
  for (const std::string& set : instruction_sets()) {
    if (!table.Knows(set)) {
      unknown += " " + set;
      continue;
    }
    force_instruction_set(set);
    // The portable code takes three times as long as the others.
    const std::size_t step = set == "SCALAR" || set == "EMU128" ? 2 : 1;
    for (std::size_t n = 0; n < calls.size(); n += step) {
      table.Check(n, set, {hashes_of(calls[n], 1), hashes_of(calls[n], 2), hashes_of(calls[n], 3)});
    }
  }
  force_instruction_set("");
  table.Finish();
  if (!unknown.empty()) {
    GTEST_SKIP() << "tests/data/hashes.txt has no hashes of instruction sets" << unknown;
  }
}

void CheckCalls(const char* group, const std::vector<Call>& calls) {
  Random random(90);
  std::vector<HashedCall> hashed;
  for (const Call& call : calls) {
    const Shape& s = call.shape;
    HashedCall next{call, {}, hashed.size()};
    next.upstream.out =
        Tensor(call.query.dtype(), {s.batch, s.query_heads, s.queries, s.value_depth});
    Fill(random, next.upstream.out);
    if (hashed.size() % 2 == 0) {
      next.upstream.lse.resize(call.rows());
      for (float& x : next.upstream.lse) x = static_cast<float>(SumOfIntegers(random));
    }
    hashed.push_back(next);
  }
  CheckAll(group, hashed, [](HashedCall& call, int threads) {
    call.call.options.num_threads = threads;
    return HashesOf(call);
  });
}

TEST(Hashes, Dense) { CheckCalls("dense", DenseCalls()); }
TEST(Hashes, FewQueries) { CheckCalls("few", FewQueryCalls()); }
TEST(Hashes, Lsh) { CheckCalls("lsh", LshCalls()); }
TEST(Hashes, Tree) { CheckCalls("tree", TreeCalls()); }
TEST(Hashes, Auto) { CheckCalls("auto", AutoCalls()); }
TEST(Hashes, Mixed) { CheckCalls("mixed", MixedCalls()); }
TEST(Hashes, Dropout) { CheckCalls("dropout", DropoutCalls()); }
TEST(Hashes, NonFinite) { CheckCalls("non_finite", NonFiniteCalls()); }

TEST(Hashes, Merge) {
  Random random(9);
  std::vector<std::pair<Call, Call>> pairs;
  for (const DType dtype : kFloats) {
    for (const std::int64_t depth : {1, 8, 40, 64}) {
      const auto make = [&](std::int64_t keys) {
        Call call({2, 2, 2, 70, keys, 16, depth}, dtype);
        call.options.method = Method::kDense;
        call.key_padding_mask = RightPadding(2, keys);
        return Filled(random, call);
      };
      pairs.emplace_back(make(20), make(90));  // of the first 20 keys, batch entry 1 sees none
    }
  }
  CheckAll("merge", pairs, [](std::pair<Call, Call>& pair, int threads) {
    pair.first.options.num_threads = pair.second.options.num_threads = threads;
    Result first = Attend(pair.first);
    const Result second = Attend(pair.second);
    const std::initializer_list<std::int64_t> rows{2, 2, 70};
    merge(first.out.mutable_view(), Contiguous<void>(first.lse.data(), DType::kFloat32, rows),
          second.out.view(), Contiguous<const void>(second.lse.data(), DType::kFloat32, rows),
          threads);
    Hash hash;
    AddResult(hash, first);
    return Hashes{0, hash.value(), 0};
  });
}

}  // namespace
}  // namespace smyrf::testing
