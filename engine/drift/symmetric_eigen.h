// Eigenvalues and eigenvectors of a small symmetric matrix, by Jacobi's rotations.

#ifndef QLORA_ENGINE_DRIFT_SYMMETRIC_EIGEN_H_
#define QLORA_ENGINE_DRIFT_SYMMETRIC_EIGEN_H_

#include <cstdint>
#include <vector>

namespace qlora::engine {

struct SymmetricEigen {
  std::vector<double> values;   // [n], largest first
  std::vector<double> vectors;  // [n, n]: row k belongs to values[k], of length 1
};

// `matrix`: [n, n], symmetric, finite. O(n³) a sweep, some ten sweeps.
SymmetricEigen DecomposeSymmetric(std::vector<double> matrix, int64_t n);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_SYMMETRIC_EIGEN_H_
