#include "kernels/cpu/simd_table.h"

namespace qlora::kernels::cpu {

const SimdKernels kSimdAvx2 = MakeSimdTable();

}  // namespace qlora::kernels::cpu
