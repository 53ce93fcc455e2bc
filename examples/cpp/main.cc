// Denoises a picture by non-local means, which is attention: each pixel becomes the mean of all
// pixels, weighed by how alike the patches around them are. Such rows have structure, and `tree`
// skips most of the work; between random rows there is nothing to skip.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "smyrf/smyrf.h"

namespace {

using smyrf::Contiguous;
using smyrf::DType;

constexpr std::int64_t kSide = 192, kRows = kSide * kSide, kPatch = 7;
// The pixels of a patch, and one number that makes an inner product a distance.
constexpr std::int64_t kDepth = kPatch * kPatch + 1;
constexpr double kNoise = 0.1;

/// A grey picture of rings and squares, between 0 and 1.
std::vector<float> Picture() {
  std::vector<float> pixels;
  for (std::int64_t y = 0; y < kSide; ++y) {
    for (std::int64_t x = 0; x < kSide; ++x) {
      const double rings = std::cos(0.0015 * static_cast<double>(x * x + y * y));
      const bool square = (x / 16 + y / 16) % 2 == 0;
      pixels.push_back(static_cast<float>(square ? 0.5 + 0.3 * rings : 0.5 - 0.2 * rings));
    }
  }
  return pixels;
}

std::vector<float> WithNoise(std::vector<float> pixels) {
  std::mt19937 generator(1);
  std::normal_distribution<float> noise(0.0F, static_cast<float>(kNoise));
  for (float& pixel : pixels) pixel += noise(generator);
  return pixels;
}

/// The patch p around each pixel, as a query (p, 1) or as a key (p, -|p|^2 / 2). The inner product
/// of two is (|a|^2 - |a - b|^2) / 2, and softmax drops |a|^2, which is the same for every key.
std::vector<float> Patches(const std::vector<float>& pixels, bool keys) {
  std::vector<float> rows;
  for (std::int64_t y = 0; y < kSide; ++y) {
    for (std::int64_t x = 0; x < kSide; ++x) {
      float squares = 0.0F;
      for (std::int64_t i = 0; i < kPatch * kPatch; ++i) {
        const std::int64_t row =
            std::clamp(y + i / kPatch - kPatch / 2, std::int64_t{0}, kSide - 1);
        const std::int64_t column =
            std::clamp(x + i % kPatch - kPatch / 2, std::int64_t{0}, kSide - 1);
        rows.push_back(pixels[static_cast<std::size_t>(row * kSide + column)]);
        squares += rows.back() * rows.back();
      }
      rows.push_back(keys ? -squares / 2 : 1.0F);
    }
  }
  return rows;
}

/// |a - b| / |b|
double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(a[i] - b[i], 2);
    norm += std::pow(b[i], 2);
  }
  return std::sqrt(difference / norm);
}

}  // namespace

int main() {
  const std::vector<float> clean = Picture();
  const std::vector<float> noisy = WithNoise(clean);
  const std::vector<float> queries = Patches(noisy, false);
  const std::vector<float> keys = Patches(noisy, true);
  // One batch, one head; the values are the pixels themselves, D = 1.
  const smyrf::Arguments arguments{
      .query = Contiguous<const void>(queries.data(), DType::kFloat32, {1, 1, kRows, kDepth}),
      .key = Contiguous<const void>(keys.data(), DType::kFloat32, {1, 1, kRows, kDepth}),
      .value = Contiguous<const void>(noisy.data(), DType::kFloat32, {1, 1, kRows, 1})};

  try {
    const auto run = [&](smyrf::Options options) {
      options.scale = 5.0 / (kPatch * kPatch * kNoise * kNoise);
      std::vector<float> out(noisy.size());
      const auto begin = std::chrono::steady_clock::now();
      smyrf::attention(arguments, options,
                       {.out = Contiguous<void>(out.data(), DType::kFloat32, {1, 1, kRows, 1})});
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      std::printf("%5.2f s, off the clean picture by %4.1f %%", taken.count(),
                  100 * RelativeError(out, clean));
      return out;
    };

    std::printf("%lld pixels, noise of %.1f %%\n", static_cast<long long>(kRows),
                100 * RelativeError(noisy, clean));
    std::printf("dense     ");
    const std::vector<float> exact = run({.method = smyrf::Method::kDense});
    std::printf("\n");
    bool close = true;
    for (const double tolerance : {0.1, 0.05}) {
      std::printf("tree %.2f ", tolerance);
      const double error =
          RelativeError(run({.method = smyrf::Method::kTree, .tolerance = tolerance}), exact);
      std::printf(", off dense's by %.1f %%\n", 100 * error);
      close = close && error < 2 * tolerance;
    }
    return close ? 0 : 1;
  } catch (const smyrf::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
