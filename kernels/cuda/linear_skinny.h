// The forward linear for at most 16 rows over a 4-bit base: a decoder's step, bound by the packed
// bytes of the weight. linear_forward.cu asks IsSkinny and hands over.

#ifndef QLORA_KERNELS_CUDA_LINEAR_SKINNY_H_
#define QLORA_KERNELS_CUDA_LINEAR_SKINNY_H_

#include "kernels/cuda/ops.h"
#include "kernels/ops/linear.h"

namespace qlora::kernels::cuda {

// bf16 rows, blocks of 64 that do not run across rows, 16-byte aligned operands, no dropout. Looks
// at addresses: to be asked where they are known.
bool IsSkinny(const LinearForward& op);

void RunSkinny(const LinearForward& op, const Context& context);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_LINEAR_SKINNY_H_
