// Which variants of a linear op a card can run, and which of them is the default.

#ifndef QLORA_KERNELS_CUDA_LINEAR_VARIANTS_H_
#define QLORA_KERNELS_CUDA_LINEAR_VARIANTS_H_

#include <vector>

#include "kernels/cuda/runtime.h"
#include "kernels/op_list.h"

namespace qlora::kernels::cuda {

// By shapes, types and the card; the first is the table's choice. Never empty.
std::vector<LinearVariant> VariantsOf(const Op& op, const gpu::Properties& card);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_LINEAR_VARIANTS_H_
