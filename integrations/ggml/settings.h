// The plug-in's dials, and what it tells of its calls.
#pragma once

#include <cstdint>
#include <string>

#include "smyrf/smyrf.h"

namespace smyrf::ggml {

/// Dials of the process: from the environment when the plug-in is loaded, then by setters.
struct Settings {
  Method method = Method::kAuto;         ///< SMYRF_METHOD: auto, dense or tree
  double tolerance = kDefaultTolerance;  ///< SMYRF_TOLERANCE: of `tree`, from 0 to below 1
  bool log = false;                      ///< SMYRF_LOG=1: a summary when a backend is freed
};

/// Reads the environment. Returns an empty string, or what is wrong with it, in one sentence.
std::string ReadSettings();

Settings CurrentSettings();

/// As the environment's; false, and nothing changes, where the value isn't accepted.
bool SetMethod(const char* name);
bool SetTolerance(double tolerance);
void SetLog(bool log);

/// Sums over calls of one backend.
class Summary {
 public:
  void Add(Method method, std::int64_t pairs, const Statistics& statistics, double seconds);
  /// One line; empty where there was no call.
  std::string Text() const;

 private:
  struct Sums {
    std::int64_t calls = 0;
    double pairs = 0.0, evaluated = 0.0, seconds = 0.0, expected_error = 0.0;
  };
  Sums dense_, tree_;
};

}  // namespace smyrf::ggml
