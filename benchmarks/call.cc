// What a call costs beside its arithmetic: one query over 16 keys, D 64, on one thread. Prints a
// line for each number of heads: heads, best and median microseconds a call. benchmarks/call.py
// shows it beside the calls from Python.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

#include "smyrf/smyrf.h"

namespace {

constexpr std::int64_t kKeys = 16;
constexpr std::int64_t kDepth = 64;
constexpr int kCalls = 1000;  // between two readings of the clock
constexpr std::size_t kReadings = 500;

void Measure(std::int64_t heads) {
  const auto floats = [&](std::int64_t rows) {
    std::vector<float> numbers(static_cast<std::size_t>(heads * rows * kDepth));
    for (std::size_t i = 0; i < numbers.size(); ++i)
      numbers[i] = static_cast<float>(i % 17) / 16.0F;
    return numbers;
  };
  const std::vector<float> query = floats(1);
  const std::vector<float> key = floats(kKeys);
  const std::vector<float> value = floats(kKeys);
  std::vector<float> out = floats(1);
  const auto view = [&](const std::vector<float>& numbers, std::int64_t rows) {
    return smyrf::Contiguous<const void>(numbers.data(), smyrf::DType::kFloat32,
                                         {1, heads, rows, kDepth});
  };
  const smyrf::Arguments arguments{view(query, 1), view(key, kKeys), view(value, kKeys)};
  const smyrf::Outputs outputs{
      smyrf::Contiguous<void>(out.data(), smyrf::DType::kFloat32, {1, heads, 1, kDepth})};
  smyrf::Options options;
  options.num_threads = 1;
  std::vector<double> microseconds;
  for (std::size_t reading = 0; reading <= kReadings; ++reading) {  // the first warms up
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    for (int call = 0; call < kCalls; ++call) smyrf::attention(arguments, options, outputs);
    const std::chrono::duration<double, std::micro> time = Clock::now() - start;
    if (reading > 0) microseconds.push_back(time.count() / kCalls);
  }
  std::sort(microseconds.begin(), microseconds.end());
  std::printf("%lld %.3f %.3f\n", static_cast<long long>(heads), microseconds.front(),
              microseconds[kReadings / 2]);
}

}  // namespace

int main() try {
  for (const std::int64_t heads : {1, 12}) Measure(heads);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
