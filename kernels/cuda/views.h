// Shapes and alignment of views, as host code of this backend asks for them.

#ifndef QLORA_KERNELS_CUDA_VIEWS_H_
#define QLORA_KERNELS_CUDA_VIEWS_H_

#include <cstdint>

#include "kernels/tensor.h"

namespace qlora::kernels::cuda {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether every row of the view begins at a multiple of `bytes`.
inline bool IsAligned(const ConstTensor& t, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(t.data) % bytes == 0 &&
         (t.rows <= 1 || t.pitch * SizeOf(t.dtype) % bytes == 0);
}

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_VIEWS_H_
