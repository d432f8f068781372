#include "kernels/cross_entropy_chunks.h"

#include <algorithm>

namespace qlora::kernels {
namespace {

constexpr int64_t kAlignment = 64;

constexpr int64_t RoundUp(int64_t n) { return AlignUp(n, kAlignment); }

// Whether an optional operand is there: by shape too, since workspaces are asked for before there
// are addresses.
bool IsGiven(const ConstTensor& t) { return t.data != nullptr || t.cols > 0; }

}  // namespace

ChunkPlan PlanChunks(const LinearCrossEntropy& op,
                     const std::function<int64_t(const Op&)>& workspace_bytes) {
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
  int64_t inner = workspace_bytes(plan.forward);
  if (IsGiven(op.dh)) {
    plan.backward_input.dy = dlogits;
    plan.backward_input.base = op.head;
    plan.backward_input.live_rows = live;
    plan.backward_input.dx = h;
    inner = std::max(inner, workspace_bytes(plan.backward_input));
  }
  if (IsGiven(op.dhead)) {
    plan.backward_weight.x = h;
    plan.backward_weight.dy = dlogits;
    plan.backward_weight.live_rows = live;
    plan.backward_weight.dweight = op.dhead;
    inner = std::max(inner, workspace_bytes(plan.backward_weight));
  }
  plan.bytes = plan.inner_at + inner;
  return plan;
}

void Bind(const LinearCrossEntropy& op, ChunkPlan& plan) {
  uint8_t* base = static_cast<uint8_t*>(op.workspace.data);
  const Tensor inner = {base + plan.inner_at, DType::kU8, 1, plan.bytes - plan.inner_at,
                        plan.bytes - plan.inner_at};
  plan.forward.x.data = plan.backward_weight.x.data = base;
  plan.forward.y.data = base + plan.logits_at;
  plan.backward_input.dy.data = plan.backward_weight.dy.data = base + plan.logits_at;
  plan.backward_input.dx.data = base + plan.dh_at;
  plan.forward.live_rows.data = plan.backward_input.live_rows.data =
      plan.backward_weight.live_rows.data = base + plan.live_at;
  plan.forward.workspace = plan.backward_input.workspace = plan.backward_weight.workspace = inner;
}

}  // namespace qlora::kernels
