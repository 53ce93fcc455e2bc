// Attention over random tensors: exact, then by the paper's clusters, and how far those are off.
// Random tensors have no large inner products that clusters could find, so lsh's error is large.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <span>
#include <vector>

#include "smyrf/smyrf.h"

namespace {

constexpr std::int64_t kBatch = 1, kHeads = 2, kRows = 1024, kDepth = 64;

std::vector<float> Random(std::mt19937& generator) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(kBatch * kHeads * kRows * kDepth));
  for (float& value : values) value = normal(generator);
  return values;
}

/// |a - b| / |b|, Frobenius norms.
double RelativeError(std::span<const float> a, std::span<const double> b) {
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
  std::mt19937 generator(1);
  const std::vector<float> q = Random(generator);
  const std::vector<float> k = Random(generator);
  const std::vector<float> v = Random(generator);
  const auto view = [](const std::vector<float>& tensor) -> smyrf::TensorView {
    return smyrf::Contiguous<const void>(tensor.data(), smyrf::DType::kFloat32,
                                         {kBatch, kHeads, kRows, kDepth});
  };
  const smyrf::Arguments arguments{.query = view(q), .key = view(k), .value = view(v)};

  try {
    std::vector<double> truth(q.size());
    smyrf::reference(arguments, {}, truth.data(), nullptr);

    // Runs one method, prints what it did and returns how far it is from the truth.
    const auto run = [&](const char* name, const smyrf::Options& options) {
      std::vector<float> out(q.size());
      smyrf::Statistics statistics;
      const smyrf::Outputs outputs{
          .out = smyrf::Contiguous<void>(out.data(), smyrf::DType::kFloat32,
                                         {kBatch, kHeads, kRows, kDepth}),
          .statistics = &statistics};
      smyrf::attention(arguments, options, outputs);
      const double error = RelativeError(out, truth);
      std::printf("%-5s  density %.3f  %6.2f ms  relative error %.1e\n", name,
                  statistics.heads[0].density,
                  1e3 * (statistics.planning_seconds + statistics.execution_seconds), error);
      return error;
    };
    const double dense = run("dense", {.method = smyrf::Method::kDense});
    run("lsh", {.method = smyrf::Method::kLsh, .n_hashes = 8, .cluster_size = 32});
    return dense < 1e-5 ? 0 : 1;
  } catch (const smyrf::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
