#include "kernels/cuda/linear_cross_entropy_plan.h"

#include <algorithm>

#include "kernels/cuda/workspace.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int64_t kAlignment = 64;

constexpr int64_t RoundUp(int64_t n) { return AlignUp(n, kAlignment); }

// Whether an optional operand is there: by shape too, since workspaces are asked for before there
// are addresses.
bool IsGiven(const ConstTensor& t) { return t.data != nullptr || t.cols > 0; }

}  // namespace

ChunkPlan PlanOf(const LinearCrossEntropy& op, const gpu::Properties& card) {
  ChunkPlan plan;
  const int64_t capacity = op.rows.rows;
  plan.rows = op.chunk_rows > 0 ? std::min(op.chunk_rows, capacity) : capacity;
  const int64_t hidden = op.head.in_features, vocabulary = op.head.out_features;
  const int64_t element = SizeOf(op.h.dtype);
  const int64_t hidden_pitch = RoundUp(hidden * element) / element;
  const int64_t pitch = RoundUp(vocabulary * int64_t{sizeof(float)}) / int64_t{sizeof(float)};
  const int64_t hidden_bytes = plan.rows * hidden_pitch * element;

  plan.logits_at = hidden_bytes;
  plan.dh_at = plan.logits_at + plan.rows * pitch * int64_t{sizeof(float)};
  plan.results_at = plan.dh_at + (IsGiven(op.dh) ? hidden_bytes : 0);
  plan.live_at = plan.results_at + RoundUp(capacity * int64_t{sizeof(RowResult)});
  plan.inner_at = plan.live_at + kAlignment;

  // Addresses are filled in by Bind; the sizes decide the products' workspaces.
  const ConstTensor live = {&plan, DType::kI32, 1, 1, 1};
  const Tensor h = {&plan, op.h.dtype, plan.rows, hidden, hidden_pitch};
  const Tensor logits = {&plan, DType::kF32, plan.rows, vocabulary, pitch};
  const ConstTensor dlogits = {&plan, op.h.dtype, plan.rows, vocabulary,
                               pitch * int64_t{sizeof(float)} / element};
  plan.forward.x = h;
  plan.forward.base = op.head;
  plan.forward.live_rows = live;
  plan.forward.y = logits;
  int64_t inner = WorkspaceBytes(plan.forward, card);
  if (IsGiven(op.dh)) {
    plan.backward_input.dy = dlogits;
    plan.backward_input.base = op.head;
    plan.backward_input.live_rows = live;
    plan.backward_input.dx = h;
    inner = std::max(inner, WorkspaceBytes(plan.backward_input, card));
  }
  if (IsGiven(op.dhead)) {
    plan.backward_weight.x = h;
    plan.backward_weight.dy = dlogits;
    plan.backward_weight.live_rows = live;
    plan.backward_weight.dweight = op.dhead;
    inner = std::max(inner, WorkspaceBytes(plan.backward_weight, card));
  }
  plan.bytes = plan.inner_at + inner;
  return plan;
}

}  // namespace qlora::kernels::cuda
