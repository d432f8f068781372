// How LinearCrossEntropy is cut into chunks, and where the parts of its workspace lie.

#ifndef QLORA_KERNELS_CUDA_LINEAR_CROSS_ENTROPY_PLAN_H_
#define QLORA_KERNELS_CUDA_LINEAR_CROSS_ENTROPY_PLAN_H_

#include "kernels/cuda/runtime.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/linear_cross_entropy.h"

namespace qlora::kernels::cuda {

struct RowResult {
  double loss;
  int32_t correct;
  int32_t unused;
};

// The workspace: a chunk's rows of h, their logits (later the logits' gradient, in place), their
// rows of dh, the results of all trained rows, the chunk's count as the products read it, and the
// products' own workspace. The three products are the ops of linear.h, so that a head may be
// anything a base may be.
struct ChunkPlan {
  int64_t rows = 0;  // trained rows per chunk
  int64_t logits_at = 0, dh_at = 0, results_at = 0, live_at = 0, inner_at = 0, bytes = 0;
  LinearForward forward;
  LinearBackwardInput backward_input;
  LinearBackwardWeight backward_weight;
};

// Without addresses, which the caller fills in.
ChunkPlan PlanOf(const LinearCrossEntropy& op, const gpu::Properties& card);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_LINEAR_CROSS_ENTROPY_PLAN_H_
