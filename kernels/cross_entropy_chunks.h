// How both backends cut LinearCrossEntropy into chunks, and where the parts of its workspace lie.

#ifndef QLORA_KERNELS_CROSS_ENTROPY_CHUNKS_H_
#define QLORA_KERNELS_CROSS_ENTROPY_CHUNKS_H_

#include <functional>

#include "kernels/op_list.h"

namespace qlora::kernels {

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

// Without addresses. `workspace_bytes`: of the products, on the backend that runs them.
ChunkPlan PlanChunks(const LinearCrossEntropy& op,
                     const std::function<int64_t(const Op&)>& workspace_bytes);
// Gives the products their places in op.workspace.
void Bind(const LinearCrossEntropy& op, ChunkPlan& plan);

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_CROSS_ENTROPY_CHUNKS_H_
