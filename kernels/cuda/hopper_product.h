// The linear op by sm_90's own instructions: 4-bit weights are decoded into shared memory inside a
// product of the warpgroup tensor-core instruction, fed by the tensor copy engine.
//   forward:   y  = x · Wᵀ + bias + Σ scale · low · Bᵀ
//   backward:  dx = dy · W + Σ up · A (+ dx)
// The sum is fp32 from the first term to the one rounding at the end. Adapters come first; their
// scales are applied to the sums as they stand (each multiplication one rounding to fp32, two for a
// ratio), so that the order of terms and of roundings is that of the shapes.

#ifndef QLORA_KERNELS_CUDA_HOPPER_PRODUCT_H_
#define QLORA_KERNELS_CUDA_HOPPER_PRODUCT_H_

#include "kernels/cuda/ops.h"
#include "kernels/ops/linear.h"

namespace qlora::kernels::cuda {

// A card of compute capability 9.x; bf16 operands and results over a 4-bit base of blocks of 64
// that do not run across rows (in_features a multiple of 64, out_features of 8); rows at multiples
// of 16 bytes; at most 4 adapters over all rows, of ranks that are multiples of 8, in forward with
// scales of usual size, in backward without dropout. Asked before there are addresses and with
// them.
bool IsHopperProduct(const LinearForward& op, const gpu::Properties& card);
bool IsHopperProduct(const LinearBackwardInput& op, const gpu::Properties& card);

// Takes no workspace.
void RunHopperProduct(const LinearForward& op, const Context& context);
void RunHopperProduct(const LinearBackwardInput& op, const Context& context);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_HOPPER_PRODUCT_H_
