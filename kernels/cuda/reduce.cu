#include "kernels/cuda/elements.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/reduce.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 256;

QLORA_KERNEL void AddGradientKernel(const float* from, float* into, int64_t n) {
  const int64_t i = gpu::BlockX() * kThreads + gpu::ThreadX();
  if (i < n) into[i] += from[i];
}

}  // namespace

int64_t WorkspaceBytes(const AddGradient&, const gpu::Properties&) { return 0; }
void Run(const AddGradient& op, const Context& context) {
  const int64_t n = op.into.Count();
  gpu::Launch(context.launcher, AddGradient::kName, &AddGradientKernel,
              {.blocks_x = CeilDiv(n, kThreads), .threads = kThreads},
              static_cast<const float*>(op.from.data), static_cast<float*>(op.into.data), n);
}

}  // namespace qlora::kernels::cuda
