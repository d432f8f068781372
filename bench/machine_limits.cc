#include "bench/machine_limits.h"

// GCC 12's own headers start some intrinsics from a variable set to itself, and warn of it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <functional>
#include <thread>
#include <vector>

namespace qlora::bench {
namespace {

// Twelve chains hide the latency of four cycles at two operations a cycle.
constexpr int kChains = 12;
constexpr int64_t kSteps = 2'000'000;

__attribute__((target("avx512f"))) float FmaLoop512() {
  __m512 sum[kChains] = {};
  const __m512 factor = _mm512_set1_ps(0.999f);
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sum[j] = _mm512_fmadd_ps(sum[j], factor, factor);
  }
  __m512 all = sum[0];
  for (int j = 1; j < kChains; ++j) all = _mm512_add_ps(all, sum[j]);
  return _mm512_cvtss_f32(all);
}

__attribute__((target("avx2,fma"))) float FmaLoop256() {
  __m256 sum[kChains] = {};
  const __m256 factor = _mm256_set1_ps(0.999f);
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sum[j] = _mm256_fmadd_ps(sum[j], factor, factor);
  }
  __m256 all = sum[0];
  for (int j = 1; j < kChains; ++j) all = _mm256_add_ps(all, sum[j]);
  return _mm256_cvtss_f32(all);
}

float MultiplyAddLoop128() {
  __m128 sum[kChains] = {};
  const __m128 factor = _mm_set1_ps(0.999f);
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sum[j] = _mm_add_ps(_mm_mul_ps(sum[j], factor), factor);
  }
  __m128 all = sum[0];
  for (int j = 1; j < kChains; ++j) all = _mm_add_ps(all, sum[j]);
  return _mm_cvtss_f32(all);
}

// Seconds of the fastest of `runs` runs of work(thread) on all threads at once.
double BestSeconds(int threads, int runs, const std::function<void(int)>& work) {
  double best = 1e9;
  for (int run = 0; run < runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
    work(0);
    for (std::thread& other : others) other.join();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

MachineLimits MeasureLimits(kernels::cpu::Isa isa, int threads) {
  using kernels::cpu::Isa;
  volatile float sink = 0;
  const int lanes = isa == Isa::kPortable ? 4 : isa == Isa::kAvx2 ? 8 : 16;
  const double fma = BestSeconds(threads, 15, [&](int) {
    sink = lanes == 16 ? FmaLoop512() : lanes == 8 ? FmaLoop256() : MultiplyAddLoop128();
  });
  constexpr int64_t kWords = 32 << 20;
  std::vector<uint64_t> memory(kWords, 1);
  const double read = BestSeconds(threads, 10, [&](int t) {
    uint64_t sums[8] = {};
    const int64_t begin = kWords / threads * t / 8 * 8, end = begin + kWords / threads / 8 * 8;
    for (int64_t i = begin; i < end; i += 8) {
      for (int j = 0; j < 8; ++j) sums[j] += memory[i + j];
    }
    sink = float(sums[0] + sums[7]);
  });
  return {2.0 * kSteps * kChains * lanes * threads / fma, 8.0 * kWords / read};
}

std::string CpuModel() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos)
      return line.substr(colon + 2);
  }
  return "unknown CPU";
}

}  // namespace qlora::bench
