// Sixteen lanes: fp32 words, and pairs of bf16 with the instruction vdpbf16ps spelled out.

#include "kernels/cpu/gemm_vec_avx512.h"
//
#include "kernels/cpu/gemm_kernels_inl.h"

namespace qlora::kernels::cpu {
namespace {

// The odd elements first, each product exact, each sum rounded: the order of the instruction's
// definition.
struct MultiplyAddPairsEmulated {
  static F Apply(U a, U b, F c) {
    const U upper = U{} + 0xffff0000u;
    c = Vec::Fma((F)(a & upper), (F)(b & upper), c);
    return Vec::Fma((F)(a << 16), (F)(b << 16), c);
  }
};

}  // namespace

const GemmKernels& Avx512Kernels() {
  static constexpr GemmKernels kKernels = MakeKernels<MultiplyAddF32, 1, 14, 8, 2>();
  return kKernels;
}

const GemmKernels& Avx512Bf16EmulatedKernels() {
  static constexpr GemmKernels kKernels = MakeKernels<MultiplyAddPairsEmulated, 2, 14, 8, 2>();
  return kKernels;
}

}  // namespace qlora::kernels::cpu
