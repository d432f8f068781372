// The linear op by a dense product of the vendor's library: the weight is written out as bf16 into
// the op's workspace, with the adapters beside it as further depth, so that they cost no pass over
// the result.
//   forward:   y  = [x | low] · [W | scale·B]ᵀ (+ bias)
//   backward:  dx = [dy | up] · [W ; A] (+ dx)
// It runs on every card, is what other kernels are compared with at start-up, and is the faster way
// for many rows where no fused kernel is better.
//
// `low` goes into the columns behind x where the op has them (`tail`); elsewhere x is copied beside
// it into the workspace. By a cost model (H100: 716 TFLOP/s, 3.0 TB/s), an adapter of rank 16 adds
// to the 192 µs of a product with M = K = N = 4096: 0.4 % for the depth, 0.1 % for writing the tail
// and scale·B, and 11.7 % for the copy where there is one. Its first product reads x once more,
// 5.8 %, where the norm before has not made it (rms_norm_products.h).
//
// Rows behind the live ones are written too, with what nobody reads.

#ifndef QLORA_KERNELS_CUDA_LINEAR_DEQUANTIZED_H_
#define QLORA_KERNELS_CUDA_LINEAR_DEQUANTIZED_H_

#include "kernels/cuda/linear_dequantized_layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/linear.h"

namespace qlora::kernels::cuda {

// LoadDenseMatmul() must have been OK.
void RunDequantized(const LinearForward& op, const Context& context);
void RunDequantized(const LinearBackwardInput& op, const Context& context);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_LINEAR_DEQUANTIZED_H_
