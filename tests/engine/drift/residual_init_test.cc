#include "engine/drift/residual_init.h"

#include <cmath>
#include <cstring>

#include "engine/drift/symmetric_eigen.h"
#include "engine/lora/initialize.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

AdaptedModule Module(int64_t out, int64_t in, int64_t rank, float scaling) {
  return {.module = "m", .in = in, .out = out, .rank = rank, .scaling = scaling};
}

std::vector<float> Uniform(int64_t rows, int64_t cols, uint64_t seed) {
  std::vector<float> values(rows * cols);
  InitializeLoraA(seed, Module(1, cols, rows, 1), absl::MakeSpan(values));
  return values;
}

// ‖R − scaling·B·A‖² / ‖R‖².
double Left(const std::vector<float>& r, const AdaptedModule& m,
            const AdapterWeights::Factors& factors) {
  double error = 0, all = 0;
  for (int64_t i = 0; i < m.out; ++i) {
    for (int64_t j = 0; j < m.in; ++j) {
      double product = 0;
      for (int64_t k = 0; k < m.rank; ++k) {
        product += double(factors.b[i * m.rank + k]) * factors.a[k * m.in + j];
      }
      const double value = r[i * m.in + j];
      error += (value - m.scaling * product) * (value - m.scaling * product);
      all += value * value;
    }
  }
  return error / all;
}

TEST(ResidualInit, FindsAMatrixOfItsRankWhole) {
  const AdaptedModule m = Module(40, 56, 5, 2.0f);
  const std::vector<float> left = Uniform(40, 5, 1), right = Uniform(5, 56, 2);
  std::vector<float> r(40 * 56);
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t j = 0; j < 56; ++j) {
      for (int64_t k = 0; k < 5; ++k) r[i * 56 + j] += left[i * 5 + k] * right[k * 56 + j];
    }
  }
  const ResidualFactors found = FactorResidual(r, m, 7, 1);
  EXPECT_LT(Left(r, m, found.factors), 1e-10);
  EXPECT_NEAR(found.captured, 1, 1e-9);
}

// Against the whole decomposition of RᵀR: no approximation of rank r leaves less than the smaller
// eigenvalues' share.
TEST(ResidualInit, OfNoiseIsNearlyTheBest) {
  const int64_t out = 48, in = 64, rank = 6;
  const AdaptedModule m = Module(out, in, rank, 0.5f);
  const std::vector<float> r = Uniform(out, in, 3);
  std::vector<double> gram(in * in);
  for (int64_t a = 0; a < in; ++a) {
    for (int64_t b = 0; b < in; ++b) {
      for (int64_t i = 0; i < out; ++i) gram[a * in + b] += double(r[i * in + a]) * r[i * in + b];
    }
  }
  const SymmetricEigen eigen = DecomposeSymmetric(gram, in);
  double best = 0, all = 0;
  for (int64_t k = 0; k < in; ++k) {
    all += eigen.values[k];
    if (k < rank) best += eigen.values[k];
  }
  const ResidualFactors found = FactorResidual(r, m, 7, 1);
  const double left = Left(r, m, found.factors);
  EXPECT_NEAR(found.captured, 1 - left, 1e-5);
  EXPECT_LE(found.captured, best / all + 1e-9);
  EXPECT_GE(found.captured, 0.97 * best / all);
}

TEST(ResidualInit, IsTheSameOnAnyNumberOfThreads) {
  const AdaptedModule m = Module(33, 130, 4, 1.0f);
  const std::vector<float> r = Uniform(33, 130, 5);
  const ResidualFactors one = FactorResidual(r, m, 7, 1), many = FactorResidual(r, m, 7, 3);
  EXPECT_EQ(one.factors.a, many.factors.a);
  EXPECT_EQ(one.factors.b, many.factors.b);
}

TEST(ResidualInit, OfNothingStartsAsAlways) {
  const AdaptedModule m = Module(8, 16, 4, 1.0f);
  const ResidualFactors found = FactorResidual(std::vector<float>(8 * 16), m, 7, 1);
  std::vector<float> a(4 * 16);
  InitializeLoraA(7, m, absl::MakeSpan(a));
  EXPECT_EQ(found.factors.a, a);
  EXPECT_EQ(found.factors.b, std::vector<float>(8 * 4));
  EXPECT_EQ(found.captured, 0);
}

TEST(SymmetricEigen, RebuildsTheMatrix) {
  const int64_t n = 9;
  std::vector<double> m(n * n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) m[i * n + j] = std::sin(double(i * j)) + double(i == j);
  }
  const SymmetricEigen eigen = DecomposeSymmetric(m, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, dot = 0;
      for (int64_t k = 0; k < n; ++k) {
        sum += eigen.values[k] * eigen.vectors[k * n + i] * eigen.vectors[k * n + j];
        dot += eigen.vectors[i * n + k] * eigen.vectors[j * n + k];
      }
      EXPECT_NEAR(sum, m[i * n + j], 1e-12);
      EXPECT_NEAR(dot, i == j, 1e-12);
    }
    if (i > 0) {
      EXPECT_LE(eigen.values[i], eigen.values[i - 1]);
    }
  }
}

}  // namespace
}  // namespace qlora::engine
