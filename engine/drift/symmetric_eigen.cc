#include "engine/drift/symmetric_eigen.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace qlora::engine {
namespace {

constexpr int kMaxSweeps = 60;

// Rotates rows p and q of an [n, n] matrix.
void RotateRows(std::vector<double>* m, int64_t n, int64_t p, int64_t q, double c, double s) {
  for (int64_t i = 0; i < n; ++i) {
    const double x = (*m)[p * n + i], y = (*m)[q * n + i];
    (*m)[p * n + i] = c * x - s * y;
    (*m)[q * n + i] = s * x + c * y;
  }
}

void RotateColumns(std::vector<double>* m, int64_t n, int64_t p, int64_t q, double c, double s) {
  for (int64_t i = 0; i < n; ++i) {
    const double x = (*m)[i * n + p], y = (*m)[i * n + q];
    (*m)[i * n + p] = c * x - s * y;
    (*m)[i * n + q] = s * x + c * y;
  }
}

}  // namespace

SymmetricEigen DecomposeSymmetric(std::vector<double> matrix, int64_t n) {
  std::vector<double>& a = matrix;
  std::vector<double> v(n * n);
  for (int64_t i = 0; i < n; ++i) v[i * n + i] = 1;
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    double off = 0, all = 0;
    for (int64_t i = 0; i < n * n; ++i) {
      all += a[i] * a[i];
      if (i / n != i % n) off += a[i] * a[i];
    }
    if (off <= 1e-28 * all) break;
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) {
        if (a[p * n + q] == 0) continue;
        // The smaller rotation of the two that make a[p][q] zero (Golub & Van Loan, 8.5.2).
        const double theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q]);
        const double t = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        RotateColumns(&a, n, p, q, c, s);
        RotateRows(&a, n, p, q, c, s);
        RotateRows(&v, n, p, q, c, s);
      }
    }
  }
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t x, int64_t y) { return a[x * n + x] > a[y * n + y]; });
  SymmetricEigen result{.values = {}, .vectors = std::vector<double>(n * n)};
  for (int64_t k = 0; k < n; ++k) {
    result.values.push_back(a[order[k] * n + order[k]]);
    std::copy_n(v.begin() + order[k] * n, n, result.vectors.begin() + k * n);
  }
  return result;
}

}  // namespace qlora::engine
