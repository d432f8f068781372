// The product behind the linear ops, with kernels that op_test does not reach: pairs of bf16 as
// vdpbf16ps adds them, spelled out for machines without it. And what gemm.h promises of a row: its
// bytes do not depend on its neighbours.

#include "kernels/cpu/product.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"

namespace qlora::kernels::cpu {
namespace {

std::vector<bf16> Numbers(int64_t n, uint32_t seed) {
  std::vector<bf16> values(n);
  for (bf16& v : values) {
    seed = seed * 1664525u + 1013904223u;
    v = bf16(float(int32_t(seed)) / 2147483648.0f);
  }
  return values;
}

ConstTensor View(const std::vector<bf16>& v, int64_t rows, int64_t cols) {
  return {v.data(), DType::kBf16, rows, cols, cols};
}

// C = A·Bᵀ of m × n × k; `transposed` stores B as [k, n].
std::vector<float> Multiply(const std::vector<bf16>& a, const std::vector<bf16>& b, int64_t m,
                            int64_t n, int64_t k, bool transposed, const KernelSet& kernels,
                            ThreadPool& pool) {
  std::vector<float> c(m * n, -1.0f);
  std::vector<uint8_t> workspace(ProductWorkspaceBytes(m, {k}) + 64);
  ProductTerm term;
  term.a = AsStored(View(a, m, k));
  term.b = transposed ? AsTransposed(View(b, k, n)) : AsStored(View(b, n, k));
  term.round_to_bf16 = true;
  Product product;
  product.rows = m;
  product.columns = n;
  product.terms = absl::MakeConstSpan(&term, 1);
  product.c = {c.data(), DType::kF32, m, n, n};
  const uintptr_t at = (reinterpret_cast<uintptr_t>(workspace.data()) + 63) / 64 * 64;
  RunProduct(product, reinterpret_cast<void*>(at), pool, kernels);
  return c;
}

std::vector<KernelSet> Sets() {
  std::vector<KernelSet> sets;
  for (Isa isa : AvailableIsas()) sets.push_back(KernelsOf(isa));
  if (BestIsa() >= Isa::kAvx512) sets.push_back({&Avx512Kernels(), &Avx512Bf16EmulatedKernels()});
  return sets;
}

TEST(ProductTest, MatchesFp64WithEveryKernelSet) {
  auto pool = ThreadPool::Create(2);
  ASSERT_TRUE(pool.ok());
  struct Shape {
    int64_t m, n, k;
  };
  for (const Shape& s :
       {Shape{1, 1, 1}, {3, 33, 5}, {14, 32, 256}, {15, 31, 257}, {40, 130, 513}, {570, 17, 31}}) {
    const std::vector<bf16> a = Numbers(s.m * s.k, 1), b = Numbers(s.n * s.k, 2);
    for (bool transposed : {false, true}) {
      for (const KernelSet& set : Sets()) {
        const std::vector<float> c = Multiply(a, b, s.m, s.n, s.k, transposed, set, **pool);
        for (int64_t i = 0; i < s.m; ++i) {
          for (int64_t j = 0; j < s.n; ++j) {
            double sum = 0, magnitude = 0;
            for (int64_t q = 0; q < s.k; ++q) {
              const double p =
                  double(float(a[i * s.k + q])) * float(b[transposed ? q * s.n + j : j * s.k + q]);
              sum += p;
              magnitude += std::abs(p);
            }
            ASSERT_LE(std::abs(c[i * s.n + j] - sum), double(s.k + 1) * 0x1p-24 * magnitude)
                << s.m << "x" << s.n << "x" << s.k << " at " << i << ", " << j;
          }
        }
      }
    }
  }
}

TEST(ProductTest, RowDoesNotDependOnItsNeighbours) {
  auto pool = ThreadPool::Create(2);
  ASSERT_TRUE(pool.ok());
  constexpr int64_t kM = 600, kN = 70, kK = 300;
  const std::vector<bf16> a = Numbers(kM * kK, 3), b = Numbers(kN * kK, 4);
  for (const KernelSet& set : Sets()) {
    const std::vector<float> all = Multiply(a, b, kM, kN, kK, false, set, **pool);
    for (int64_t row : {int64_t{0}, int64_t{299}, kM - 1}) {
      const std::vector<bf16> one(a.begin() + row * kK, a.begin() + (row + 1) * kK);
      const std::vector<float> alone = Multiply(one, b, 1, kN, kK, false, set, **pool);
      EXPECT_EQ(std::memcmp(alone.data(), all.data() + row * kN, kN * sizeof(float)), 0) << row;
    }
  }
}

}  // namespace
}  // namespace qlora::kernels::cpu
