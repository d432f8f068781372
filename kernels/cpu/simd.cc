#include "kernels/cpu/simd.h"

#include "kernels/cpu/simd_table.h"

namespace qlora::kernels::cpu {

const SimdKernels kSimdPortable = MakeSimdTable();

const SimdKernels& SimdFor(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return kSimdPortable;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return kSimdAvx2;
    case Isa::kAvx512:
    case Isa::kAvx512Bf16:
      return kSimdAvx512;
#else
    default:
      return kSimdPortable;
#endif
  }
  return kSimdPortable;
}

}  // namespace qlora::kernels::cpu
