// Attention over random tensors: exact, then by the paper's clusters, and how far those are off.
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
double RelativeError(std::span<const float> a, std::span<const float> b) {
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(double{a[i]} - double{b[i]}, 2);
    norm += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

}  // namespace

int main() {
  std::mt19937 generator(1);
  const std::vector<float> q = Random(generator), k = Random(generator), v = Random(generator);
  const auto view = [](const std::vector<float>& tensor) {
    return smyrf::TensorView(smyrf::Contiguous(static_cast<const void*>(tensor.data()),
                                               smyrf::DType::kFloat32,
                                               {kBatch, kHeads, kRows, kDepth}));
  };
  const smyrf::Arguments arguments{.query = view(q), .key = view(k), .value = view(v)};

  const auto attend = [&](const smyrf::Options& options, smyrf::Statistics& statistics) {
    std::vector<float> out(q.size());
    smyrf::Outputs outputs{.out = smyrf::Contiguous(static_cast<void*>(out.data()),
                                                    smyrf::DType::kFloat32,
                                                    {kBatch, kHeads, kRows, kDepth})};
    outputs.statistics = &statistics;
    smyrf::attention(arguments, options, outputs);
    return out;
  };

  try {
    smyrf::Statistics statistics;
    const std::vector<float> exact = attend({.method = smyrf::Method::kDense}, statistics);
    std::printf("dense  density %.3f  %.1f ms\n", statistics.heads[0].density,
                1e3 * statistics.execution_seconds);
    const std::vector<float> clustered =
        attend({.method = smyrf::Method::kLsh, .n_hashes = 8, .cluster_size = 32}, statistics);
    std::printf("lsh    density %.3f  %.1f ms  relative error %.3f\n", statistics.heads[0].density,
                1e3 * (statistics.planning_seconds + statistics.execution_seconds),
                RelativeError(clustered, exact));
  } catch (const smyrf::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
