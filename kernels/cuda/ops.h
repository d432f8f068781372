// The CUDA implementation of every op: one file each, named after the op's header.
//
// The files are CUDA C++ over gpu/primitives.h and gpu/launch.h alone, so that they compile for
// NVIDIA cards and, as C++, for the executor of the tests.

#ifndef QLORA_KERNELS_CUDA_OPS_H_
#define QLORA_KERNELS_CUDA_OPS_H_

#include "gpu/launch.h"
#include "kernels/cuda/workspace.h"
#include "kernels/op_list.h"

namespace qlora::kernels::cuda {

struct Context {
  gpu::Launcher& launcher;
  const gpu::Properties& card;
};

// Starts the op's kernels on the launcher's stream. Nothing here waits, allocates or reads device
// memory. An op of op_list.h that no file defines is a link error.
#define QLORA_DECLARE_RUN(OpType) void Run(const OpType& op, const Context& context);
QLORA_FOR_EACH_OP(QLORA_DECLARE_RUN)
#undef QLORA_DECLARE_RUN

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_OPS_H_
