// Whether a linear op runs fused or over a weight that is written out: the fixed table.

#ifndef QLORA_KERNELS_CUDA_LINEAR_TABLE_H_
#define QLORA_KERNELS_CUDA_LINEAR_TABLE_H_

#include <vector>

#include "kernels/cuda/runtime.h"
#include "kernels/op_list.h"

namespace qlora::kernels::cuda {

// By shapes, types and the card; the table's choice first. `has_library`: whether the vendor's
// dense product is there. kFused alone for ops that are not linear.
std::vector<LinearVariant> TableVariants(const Op& op, const gpu::Properties& card,
                                         bool has_library);

// Device::TailColumns.
int64_t TailColumnsOf(const Op& op);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_LINEAR_TABLE_H_
