// Exact: a program that links the shared library sees its public names only, and what is thrown or
// handed in crosses the border.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <functional>
#include <memory>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

#include "smyrf/c/smyrf.h"
#include "smyrf/methods.h"
#include "smyrf/smyrf.h"

namespace smyrf {
namespace {

/// A small call and its outputs.
struct Small {
  std::vector<float> rows = std::vector<float>(64, 0.5F);
  std::vector<float> out = std::vector<float>(rows.size());
  Options options;

  void Attend() {
    const TensorView view = Contiguous<const void>(rows.data(), DType::kFloat32, {1, 2, 8, 4});
    attention({view, view, view}, options,
              {Contiguous<void>(out.data(), DType::kFloat32, {1, 2, 8, 4})});
  }
};

std::vector<std::string> ShownNames() {
  constexpr const char* kCommand = SMYRF_NM " -D --defined-only -C " SMYRF_LIBRARY;
  // NOLINTNEXTLINE(bugprone-command-processor): the build says what it runs
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(popen(kCommand, "r"), pclose);
  std::vector<std::string> names;
  std::array<char, 4096> line{};
  while (pipe && std::fgets(line.data(), line.size(), pipe.get()) != nullptr) {
    const std::string text(line.data());
    names.push_back(text.substr(19, text.size() - 20));  // behind address and kind
  }
  return names;
}

TEST(SharedLibrary, ShowsPublicNamesOnly) {
  const std::regex shown(
      "smyrf_[a-z_]+|smyrf::(Plan|Statistics|Workspace)::.*|smyrf::[a-z_]+(\\[abi:cxx11\\])?\\(.*|"
      "(vtable|typeinfo|typeinfo name) for smyrf::(Error|ThreadPool)");
  const std::vector<std::string> names = ShownNames();
  EXPECT_GT(names.size(), 50U);
  for (const std::string& name : names) EXPECT_TRUE(std::regex_match(name, shown)) << name;
}

TEST(SharedLibrary, ItsErrorsAreCaught) {
  Small small;
  small.Attend();
  EXPECT_EQ(small.out, small.rows);
  small.options.method = Method::kDense;
  small.options.n_hashes = 4;
  try {
    small.Attend();
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kValue);
  }
  EXPECT_THROW(small.Attend(), std::invalid_argument);
  EXPECT_THROW(Plan::from_bytes("nothing"), Error);
}

/// A pool of the program's, which fails.
class Failing final : public ThreadPool {
 public:
  int size() const override { return 2; }
  void run(int, const std::function<void()>&) override {
    throw Error(ErrorKind::kUnsupported, "no threads today");
  }
};

TEST(SharedLibrary, WhatAPoolThrowsComesBack) {
  Failing pool;
  Small small;
  small.rows.resize(std::size_t{2} * 800 * 4, 0.5F);
  small.options.thread_pool = &pool;
  std::vector<float> out(small.rows.size());
  const TensorView view =
      Contiguous<const void>(small.rows.data(), DType::kFloat32, {1, 2, 800, 4});
  EXPECT_THROW(attention({view, view, view}, small.options,
                         {Contiguous<void>(out.data(), DType::kFloat32, {1, 2, 800, 4})}),
               Error);
}

TEST(SharedLibrary, ItsTablesAreTheHeadersOptions) {
  for (const MethodInfo* method : methods()) {
    EXPECT_EQ(method_named(method->name), method->method);
    EXPECT_EQ(method->Find(kClusterSizeOption) != nullptr, method->method == Method::kLsh);
  }
  EXPECT_STREQ(smyrf_version(), SMYRF_VERSION_STRING);
}

}  // namespace
}  // namespace smyrf
