// Attention in fp32: for runs that want no rounding, not for speed. A warp a row.

#ifndef QLORA_KERNELS_CUDA_ATTENTION_F32_H_
#define QLORA_KERNELS_CUDA_ATTENTION_F32_H_

#include "kernels/cuda/ops.h"
#include "kernels/ops/attention.h"

namespace qlora::kernels::cuda {

void RunAttentionF32(const AttentionForward& op, const Context& context);
// `delta`: f32 [Tq, query_heads], D of each query and head.
void RunAttentionF32(const AttentionBackward& op, const float* delta, const Context& context);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_ATTENTION_F32_H_
