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
  bool log = false;                      ///< SMYRF_LOG=1: a summary on standard error
};

/// Reads the environment. Returns an empty string, or what is wrong with it, in one sentence.
std::string ReadSettings();

Settings CurrentSettings();

/// As the environment's; false, and nothing changes, where the value isn't accepted.
bool SetMethod(const char* name);
bool SetTolerance(double tolerance);
void SetLog(bool log);

/// Counts a call for the summary, which must have been asked for.
void CountCall(Method method, std::int64_t pairs, const Statistics& statistics, double seconds);

/// Writes one line about the calls since the last one; nothing where there was no call. To standard
/// error and not to the host's log, of which llama.cpp's programs show warnings alone. Done when a
/// backend is freed and when the process ends: many a program never frees one.
void WriteSummary();

}  // namespace smyrf::ggml
