#include "settings.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <system_error>

#include "base/message.h"

namespace smyrf::ggml {
namespace {

std::mutex mutex;
Settings settings;

class Summary {
 public:
  Summary() = default;
  Summary(const Summary&) = delete;
  Summary& operator=(const Summary&) = delete;
  Summary(Summary&&) = delete;
  Summary& operator=(Summary&&) = delete;
  ~Summary() { Write(); }

  void Add(Method method, std::int64_t pairs, const Statistics& statistics, double seconds) {
    double density = 0.0;
    double error = 0.0;
    for (const auto& head : statistics.heads) {
      density += head.density;
      error = std::max(error, head.expected_error);
    }
    const auto heads = static_cast<double>(statistics.heads.size());
    const auto weight = static_cast<double>(pairs);
    const std::scoped_lock lock(mutex_);
    Sums& sums = method == Method::kTree ? tree_ : exact_;
    ++sums.calls;
    sums.pairs += weight;
    sums.evaluated += heads > 0.0 ? weight * density / heads : weight;
    sums.expected_error = std::max(sums.expected_error, error);
    sums.seconds += seconds;
  }

  void Write() noexcept try {
    const std::scoped_lock lock(mutex_);
    std::string text = Text("exact", exact_);
    const std::string tree = Text("tree", tree_);
    if (!text.empty() && !tree.empty()) text += "; ";
    text += tree;
    if (text.empty()) return;
    std::fprintf(stderr, "smyrf: %s\n", text.c_str());
    exact_ = tree_ = {};
  } catch (const std::bad_alloc&) {
    std::fputs("smyrf: not enough memory for the summary\n", stderr);
  }

 private:
  struct Sums {
    std::int64_t calls = 0;
    double pairs = 0.0, evaluated = 0.0, seconds = 0.0, expected_error = 0.0;
  };

  static std::string Text(const char* name, const Sums& sums) {
    if (sums.calls == 0) return {};
    std::string text = Message(name, ": ", sums.calls, " calls, ", sums.seconds, " s");
    if (sums.evaluated < sums.pairs) {
      text += Message(", ", 100.0 * sums.evaluated / sums.pairs, " % of the pairs");
    }
    if (sums.expected_error > 0.0) {
      text += Message(", largest error expected ", 100.0 * sums.expected_error, " %");
    }
    return text;
  }

  std::mutex mutex_;
  Sums exact_, tree_;
};

Summary summary;

}  // namespace

bool SetMethod(const char* name) {
  for (const auto method : {Method::kAuto, Method::kDense, Method::kTree}) {
    const char* known = method == Method::kAuto    ? "auto"
                        : method == Method::kDense ? "dense"
                                                   : "tree";
    if (name != nullptr && std::strcmp(name, known) == 0) {
      const std::scoped_lock lock(mutex);
      settings.method = method;
      return true;
    }
  }
  return false;
}

bool SetTolerance(double tolerance) {
  if (!(tolerance >= 0.0 && tolerance < 1.0)) return false;
  const std::scoped_lock lock(mutex);
  settings.tolerance = tolerance;
  return true;
}

void SetLog(bool log) {
  const std::scoped_lock lock(mutex);
  settings.log = log;
}

Settings CurrentSettings() {
  const std::scoped_lock lock(mutex);
  return settings;
}

std::string ReadSettings() {
  if (const char* name = std::getenv("SMYRF_METHOD"); name != nullptr && !SetMethod(name)) {
    return Message("SMYRF_METHOD: got '", name, "', accepted are auto, dense and tree");
  }
  if (const char* text = std::getenv("SMYRF_TOLERANCE"); text != nullptr) {
    // Not strtod, which wants a comma where the host has set such a locale.
    double tolerance = 0.0;
    const char* end = text + std::strlen(text);
    const auto [stop, error] = std::from_chars(text, end, tolerance);
    if (error != std::errc() || stop != end || !SetTolerance(tolerance)) {
      return Message("SMYRF_TOLERANCE: got '", text, "', expected a number from 0 to below 1");
    }
  }
  // A program may load all backends again: where the variable is missing, the setter's word holds.
  if (const char* log = std::getenv("SMYRF_LOG"); log != nullptr) {
    SetLog(std::strcmp(log, "") != 0 && std::strcmp(log, "0") != 0);
  }
  return {};
}

void CountCall(Method method, std::int64_t pairs, const Statistics& statistics, double seconds) {
  summary.Add(method, pairs, statistics, seconds);
}

void WriteSummary() { summary.Write(); }

}  // namespace smyrf::ggml
