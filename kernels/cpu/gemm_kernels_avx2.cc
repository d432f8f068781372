// Eight lanes, FMA and F16C.

#include <immintrin.h>

#include <cstdint>

namespace qlora::kernels::cpu {
namespace {

struct Vec {
  static constexpr int kLanes = 8;
  typedef float F __attribute__((vector_size(32)));
  typedef uint32_t U __attribute__((vector_size(32)));

  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F WidenF16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void StoreF16(uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static void StoreLanes(uint32_t* p, U v, int lanes) {
    for (int i = 0; i < lanes; ++i) p[i] = v[i];
  }
  // vpermps reads 8 entries: codes below 8 and from 8 on have a table each.
  struct Table {
    __m256 low, high;
  };
  static Table MakeTable(const float* table) {
    return {_mm256_load_ps(table), _mm256_load_ps(table + 8)};
  }
  static void Decode16(const Table& table, const uint8_t* codes, F (&out)[2]) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    const __m128i twice = _mm_unpacklo_epi8(bytes, bytes);
    const __m256i shifts = _mm256_setr_epi32(4, 0, 4, 0, 4, 0, 4, 0);
    for (int half = 0; half < 2; ++half) {
      const __m256i code = _mm256_srlv_epi32(
          _mm256_cvtepu8_epi32(half == 0 ? twice : _mm_unpackhi_epi64(twice, twice)), shifts);
      out[half] = Lookup(table, (U)code);
    }
  }
  static F Lookup(const Table& table, U i) {
    const __m256 low = _mm256_permutevar8x32_ps(table.low, (__m256i)i);
    const __m256 high = _mm256_permutevar8x32_ps(table.high, (__m256i)i);
    // Bit 3 of the index, moved to the sign, chooses.
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32((__m256i)i, 28)));
  }
  static void Multiply(U a, uint32_t b, U* high, U* low) {
    const __m256i factor = _mm256_set1_epi32(int(b));
    const __m256i even = _mm256_mul_epu32((__m256i)a, factor);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), factor);
    *low = (U)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
    *high = (U)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  }
};

}  // namespace
}  // namespace qlora::kernels::cpu

#include "kernels/cpu/gemm_kernels_inl.h"

namespace qlora::kernels::cpu {

const GemmKernels& Avx2Kernels() {
  static constexpr GemmKernels kKernels = MakeKernels<MultiplyAddF32, 1, 6, 4, 2>();
  return kKernels;
}

}  // namespace qlora::kernels::cpu
