// Products of dense matrices by the card vendor's own library, behind one door. Implemented twice,
// like runtime.h: by nvidia/dense_matmul.cc over cuBLASLt, which is looked for when it is first
// needed, and by tests/support/simt/dense_matmul.cc on the host.

#ifndef QLORA_KERNELS_CUDA_DENSE_MATMUL_H_
#define QLORA_KERNELS_CUDA_DENSE_MATMUL_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "kernels/cuda/runtime.h"
#include "kernels/tensor.h"

namespace qlora::gpu {

// c = alpha · a · op(b) (+ bias) (+ c), summed in fp32 and rounded once. All bf16, rows beginning
// at multiples of 16 bytes.
struct DenseMatmul {
  kernels::ConstTensor a;     // [M, D]
  kernels::ConstTensor b;     // [N, D] where `transpose_b`, else [D, N]
  kernels::ConstTensor bias;  // [1, N], or empty
  kernels::Tensor c;          // [M, N]
  bool transpose_b = false;
  bool accumulate = false;
  float alpha = 1.0f;
  void* workspace = nullptr;  // kDenseMatmulWorkspaceBytes at a multiple of 256
};

// What NVIDIA recommends for Hopper.
inline constexpr int64_t kDenseMatmulWorkspaceBytes = int64_t{32} << 20;

// NotFound, with the names that were looked for, where the library is not on this machine. Nothing
// below may be called before it was OK once.
absl::Status LoadDenseMatmul();
// For the log: "cuBLASLt 13.1.0".
std::string DenseMatmulVersion();
// Starts the product on the launcher's stream. One algorithm for a shape, for the life of the
// process, and none whose order of sums depends on timing: the same bytes every time.
void RunDenseMatmul(Launcher& launcher, const char* name, const DenseMatmul& matmul);

}  // namespace qlora::gpu

#endif  // QLORA_KERNELS_CUDA_DENSE_MATMUL_H_
