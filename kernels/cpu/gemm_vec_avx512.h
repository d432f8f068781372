// Sixteen lanes of AVX-512: the Vec of gemm_kernels_inl.h for the files that are compiled for it.

#ifndef QLORA_KERNELS_CPU_GEMM_VEC_AVX512_H_
#define QLORA_KERNELS_CPU_GEMM_VEC_AVX512_H_

// GCC 12's own headers start some intrinsics from a variable set to itself, and warn of it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

namespace qlora::kernels::cpu {
namespace {

struct Vec {
  static constexpr int kLanes = 16;
  typedef float F __attribute__((vector_size(64)));
  typedef uint32_t U __attribute__((vector_size(64)));

  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F WidenF16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void StoreF16(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static void StoreLanes(uint32_t* p, U v, int lanes) {
    _mm512_mask_storeu_epi32(p, __mmask16((1u << lanes) - 1), (__m512i)v);
  }
  using Table = __m512;
  static Table MakeTable(const float* table) { return _mm512_load_ps(table); }
  // Eight bytes to every lane group, byte i / 2 to lane i, then the nibble: the high one comes
  // first. vpermps ignores the index bits above the fourth, so nothing is masked.
  static void Decode16(Table table, const uint8_t* codes, F (&out)[1]) {
    int64_t bytes;
    __builtin_memcpy(&bytes, codes, 8);
    const __m512i spread = _mm512_set_epi32(-249, -249, -250, -250, -251, -251, -252, -252, -253,
                                            -253, -254, -254, -255, -255, -256, -256);
    const __m512i shifts = _mm512_set4_epi32(0, 4, 0, 4);
    const __m512i code =
        _mm512_srlv_epi32(_mm512_shuffle_epi8(_mm512_set1_epi64(bytes), spread), shifts);
    out[0] = _mm512_permutexvar_ps(code, table);
  }
  static F Lookup(Table table, U i) { return _mm512_permutexvar_ps((__m512i)i, table); }
  static void Multiply(U a, uint32_t b, U* high, U* low) {
    const __m512i factor = _mm512_set1_epi32(int(b));
    const __m512i even = _mm512_mul_epu32((__m512i)a, factor);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), factor);
    *low = (U)_mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
    *high = (U)_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
  }
};

}  // namespace
}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_GEMM_VEC_AVX512_H_
