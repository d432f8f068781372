// Which variants of a linear op a card can run, which of them is the default, and what room one
// wants behind its input.

#ifndef QLORA_KERNELS_CUDA_LINEAR_VARIANTS_H_
#define QLORA_KERNELS_CUDA_LINEAR_VARIANTS_H_

#include <vector>

#include "kernels/cuda/runtime.h"
#include "kernels/op_list.h"

namespace qlora::kernels::cuda {

// By shapes, types and the card; the first is the table's choice. Never empty.
std::vector<LinearVariant> VariantsOf(const Op& op, const gpu::Properties& card);

// Device::TailColumns.
int64_t TailColumnsOf(const Op& op);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_LINEAR_VARIANTS_H_
