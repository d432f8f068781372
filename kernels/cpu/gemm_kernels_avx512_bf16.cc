// Sixteen lanes of pairs of bf16.

#include "kernels/cpu/gemm_vec_avx512.h"
//
#include "kernels/cpu/gemm_kernels_inl.h"

namespace qlora::kernels::cpu {
namespace {

struct MultiplyAddPairs {
  static F Apply(U a, U b, F c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
};

}  // namespace

const GemmKernels& Avx512Bf16Kernels() {
  static constexpr GemmKernels kKernels = MakeKernels<MultiplyAddPairs, 2, 14, 8, 2>();
  return kKernels;
}

}  // namespace qlora::kernels::cpu
