// Scratch memory of every op, and where its parts lie: functions of shapes, types and the card
// alone. Host code that needs no CUDA, so that a run can be planned for a card that is not here.

#ifndef QLORA_KERNELS_CUDA_WORKSPACE_H_
#define QLORA_KERNELS_CUDA_WORKSPACE_H_

#include <cstdint>

#include "kernels/cross_entropy_chunks.h"
#include "kernels/cuda/runtime.h"
#include "kernels/op_list.h"

namespace qlora::kernels::cuda {

// Bytes of `workspace`, 0 for ops that have none. Asked before there are addresses: an optional
// operand is there where its `cols` are not 0.
#define QLORA_DECLARE_WORKSPACE(OpType) \
  int64_t WorkspaceBytes(const OpType& op, const gpu::Properties& card);
QLORA_FOR_EACH_OP(QLORA_DECLARE_WORKSPACE)
#undef QLORA_DECLARE_WORKSPACE
int64_t WorkspaceBytes(const Op& op, const gpu::Properties& card);

ChunkPlan PlanOf(const LinearCrossEntropy& op, const gpu::Properties& card);

// Products with a long depth and few results, such as an adapter's gradients, are cut into slabs so
// that they fill the card. The depth of one, 0 for no cut; bytes of their partial sums.
int64_t SlabOf(int64_t rows, int64_t columns, int64_t depth);
int64_t PartialBytes(int64_t rows, int64_t columns, int64_t depth);

// Of Quantize: chunk sums of the scales at 0, the scales in fp32 where they are quantized again,
// and a count that nobody asked for.
struct QuantizeLayout {
  int64_t absmax_at, count_at, bytes;
};
QuantizeLayout LayoutOf(const Quantize& op);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_WORKSPACE_H_
