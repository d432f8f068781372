// How sm_90's copy engine sees a matrix in global memory: made on the host, a kernel's argument.

#ifndef QLORA_KERNELS_CUDA_NVIDIA_GPU_TENSOR_MAP_H_
#define QLORA_KERNELS_CUDA_NVIDIA_GPU_TENSOR_MAP_H_

#include <cuda.h>

#include "kernels/cuda/runtime.h"
#include "kernels/tensor.h"

namespace qlora::gpu {

struct TensorMap {
  CUtensorMap native;
};

// Of a bf16 matrix: boxes of `box_rows` (at most 256) by 64 elements, stored with the 128-byte
// swizzle, zeros outside the matrix. Rows at multiples of 16 bytes. Errors are noted in the
// launcher. No call of the stream's: allowed while it is captured.
TensorMap MakeTensorMap(Launcher& launcher, const char* name, const kernels::ConstTensor& matrix,
                        int box_rows);

}  // namespace qlora::gpu

#endif  // QLORA_KERNELS_CUDA_NVIDIA_GPU_TENSOR_MAP_H_
