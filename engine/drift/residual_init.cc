#include "engine/drift/residual_init.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/data/parallel.h"
#include "engine/drift/symmetric_eigen.h"
#include "engine/lora/initialize.h"

namespace qlora::engine {
namespace {

// Directions kept beside the r that are wanted, and rounds: with them the result is within a
// percent of the best on spectra as flat as rounding errors have (Halko et al. 2011,
// arXiv:0909.4061).
constexpr int64_t kOversampling = 8;
constexpr int kRounds = 4;
constexpr int64_t kColumnTile = 64;

// Row-major [rows, cols].
struct Matrix {
  Matrix(int64_t rows, int64_t cols) : rows(rows), cols(cols), values(rows * cols) {}
  double* Row(int64_t r) { return values.data() + r * cols; }
  const double* Row(int64_t r) const { return values.data() + r * cols; }
  int64_t rows, cols;
  std::vector<double> values;
};

class Iteration {
 public:
  Iteration(absl::Span<const float> residual, int64_t out, int64_t in, int threads)
      : r_(residual), out_(out), in_(in), threads_(threads) {}

  // R·z.
  Matrix Times(const Matrix& z) const {
    Matrix y(out_, z.cols);
    ForEachInParallel(out_, threads_, 16, [&](int64_t i) {
      double* to = y.Row(i);
      for (int64_t j = 0; j < in_; ++j) {
        const double value = r_[i * in_ + j];
        const double* from = z.Row(j);
        for (int64_t k = 0; k < z.cols; ++k) to[k] += value * from[k];
      }
    });
    return y;
  }

  // Rᵀ·q.
  Matrix TransposedTimes(const Matrix& q) const {
    Matrix z(in_, q.cols);
    ForEachInParallel((in_ + kColumnTile - 1) / kColumnTile, threads_, 1, [&](int64_t tile) {
      const int64_t begin = tile * kColumnTile, end = std::min(begin + kColumnTile, in_);
      for (int64_t i = 0; i < out_; ++i) {
        const double* from = q.Row(i);
        for (int64_t j = begin; j < end; ++j) {
          const double value = r_[i * in_ + j];
          double* to = z.Row(j);
          for (int64_t k = 0; k < q.cols; ++k) to[k] += value * from[k];
        }
      }
    });
    return z;
  }

 private:
  const absl::Span<const float> r_;
  const int64_t out_, in_;
  const int threads_;
};

double ColumnDot(const Matrix& m, int64_t a, int64_t b) {
  double sum = 0;
  for (int64_t i = 0; i < m.rows; ++i) sum += m.Row(i)[a] * m.Row(i)[b];
  return sum;
}

// Gram and Schmidt, twice over each column; what depends on the columns before it becomes 0.
void Orthonormalize(Matrix* m) {
  for (int64_t c = 0; c < m->cols; ++c) {
    const double before = std::sqrt(ColumnDot(*m, c, c));
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t p = 0; p < c; ++p) {
        const double dot = ColumnDot(*m, c, p);
        for (int64_t i = 0; i < m->rows; ++i) m->Row(i)[c] -= dot * m->Row(i)[p];
      }
    }
    const double norm = std::sqrt(ColumnDot(*m, c, c));
    const double factor = norm > 1e-12 * before ? 1 / norm : 0;
    for (int64_t i = 0; i < m->rows; ++i) m->Row(i)[c] *= factor;
  }
}

// Column `column` of m·v, for the eigenvectors v in rows.
double Combined(const Matrix& m, int64_t row, const std::vector<double>& vectors, int64_t column) {
  double sum = 0;
  for (int64_t k = 0; k < m.cols; ++k) sum += m.Row(row)[k] * vectors[column * m.cols + k];
  return sum;
}

// Directions that the iteration carries.
int64_t WidthOf(const AdaptedModule& module) {
  return std::min({module.rank + kOversampling, module.in, module.out});
}

}  // namespace

int64_t FactorResidualBytes(const AdaptedModule& module) {
  // Q and Z, each beside the one that it is made anew from.
  return 2 * 8 * WidthOf(module) * (module.in + module.out);
}

ResidualFactors FactorResidual(absl::Span<const float> residual, const AdaptedModule& module,
                               uint64_t seed, int threads) {
  const int64_t width = WidthOf(module);
  const Iteration iteration(residual, module.out, module.in, threads);

  AdaptedModule start = module;
  start.rank = width;
  std::vector<float> random(width * module.in);
  InitializeLoraA(seed, start, absl::MakeSpan(random));
  Matrix z(module.in, width);
  for (int64_t j = 0; j < module.in; ++j) {
    for (int64_t k = 0; k < width; ++k) z.Row(j)[k] = random[k * module.in + j];
  }
  Matrix q(0, 0);
  for (int round = 0; round < kRounds; ++round) {
    q = iteration.Times(z);
    Orthonormalize(&q);
    z = iteration.TransposedTimes(q);
  }

  // R ≈ Q·Zᵀ with orthonormal Q: the singular values of R are those of Z, by zᵀz = V·Σ²·Vᵀ.
  std::vector<double> gram(width * width);
  for (int64_t a = 0; a < width; ++a) {
    for (int64_t b = 0; b <= a; ++b) gram[a * width + b] = gram[b * width + a] = ColumnDot(z, a, b);
  }
  const SymmetricEigen eigen = DecomposeSymmetric(std::move(gram), width);

  ResidualFactors result{.factors = {.in = module.in, .out = module.out}};
  result.factors.a.resize(module.rank * module.in);
  result.factors.b.resize(module.out * module.rank);
  InitializeLoraA(seed, module, absl::MakeSpan(result.factors.a));
  const double total = std::accumulate(residual.begin(), residual.end(), 0.0,
                                       [](double sum, float e) { return sum + double(e) * e; });
  double captured = 0;
  for (int64_t k = 0; k < std::min(module.rank, width); ++k) {
    const double value = std::sqrt(std::max(eigen.values[k], 0.0));
    if (value <= 1e-7 * std::sqrt(total)) break;
    captured += value * value;
    const double b_factor = std::sqrt(value / module.scaling);
    const double a_factor = 1 / std::sqrt(value * module.scaling);
    for (int64_t j = 0; j < module.in; ++j) {
      result.factors.a[k * module.in + j] = float(a_factor * Combined(z, j, eigen.vectors, k));
    }
    for (int64_t i = 0; i < module.out; ++i) {
      result.factors.b[i * module.rank + k] = float(b_factor * Combined(q, i, eigen.vectors, k));
    }
  }
  result.captured = total > 0 ? captured / total : 0;
  return result;
}

}  // namespace qlora::engine
