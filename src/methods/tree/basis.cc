#include "methods/tree/basis.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstddef>

namespace smyrf {

Basis FindBasis(std::span<const double> query_moment, std::span<const double> key_covariance,
                std::int64_t depth, double query_factor, double key_factor) {
  using Matrix = Eigen::MatrixXd;
  const std::int64_t width = std::min(depth, kernels::kCoordinates);
  constexpr double kRidge = 1e-6;
  Matrix moment = Eigen::Map<const Matrix>(query_moment.data(), depth, depth);
  const Matrix covariance = Eigen::Map<const Matrix>(key_covariance.data(), depth, depth);
  Matrix to_key = Matrix::Identity(depth, depth);
  Matrix to_query = to_key;
  Eigen::VectorXd deviations = Eigen::VectorXd::Ones(depth);
  if (moment.trace() > 0.0 && covariance.trace() > 0.0) {
    moment.diagonal().array() += kRidge * moment.trace() / static_cast<double>(depth);
    const Eigen::LLT<Matrix> cholesky(moment);
    const Matrix lower = cholesky.matrixL();
    // In float32, half the time: an eigenvector that is off by a rounding is as good a coordinate.
    const Eigen::MatrixXf factor = lower.cast<float>();
    const Eigen::MatrixXf product = factor.transpose() * (covariance.cast<float>() * factor);
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXf> solver(product);
    if (cholesky.info() == Eigen::Success && solver.info() == Eigen::Success) {
      const Matrix directions =
          solver.eigenvectors().rightCols(width).rowwise().reverse().cast<double>();
      deviations = solver.eigenvalues().cast<double>().reverse().cwiseMax(0.0).cwiseSqrt();
      to_key = lower * directions;
      to_query = lower.transpose().triangularView<Eigen::Upper>().solve(directions);
    }
  }

  Basis basis;
  constexpr auto kWide = static_cast<std::size_t>(kernels::kCoordinates);
  for (std::vector<float>* map : {&basis.query, &basis.key, &basis.query_tree}) {
    map->assign(static_cast<std::size_t>(depth) * kWide, 0.0F);
  }
  for (std::int64_t r = 0; r < depth; ++r) {
    for (std::int64_t c = 0; c < width; ++c) {
      const auto at = static_cast<std::size_t>(r) * kWide + static_cast<std::size_t>(c);
      // x is of scaled keys, and y makes up for their factor, so that x.y = k.q.
      basis.key[at] = static_cast<float>(to_key(r, c) * key_factor);
      basis.query[at] = static_cast<float>(to_query(r, c) / key_factor);
      basis.query_tree[at] = static_cast<float>(to_query(r, c) * deviations(c) * query_factor);
    }
  }
  return basis;
}

}  // namespace smyrf
