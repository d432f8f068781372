#include "kernels/cuda/workspace.h"

#include <algorithm>
#include <variant>

#include "kernels/cuda/linear_dequantized_layout.h"
#include "kernels/cuda/views.h"

namespace qlora::kernels::cuda {

int64_t WorkspaceBytes(const LinearForward& op, const gpu::Properties&) {
  return op.variant == LinearVariant::kDequantized ? DequantizedWorkspaceBytes(op) : 0;
}
int64_t WorkspaceBytes(const LinearBackwardInput& op, const gpu::Properties&) {
  return op.variant == LinearVariant::kDequantized ? DequantizedWorkspaceBytes(op) : 0;
}
int64_t WorkspaceBytes(const LinearBackwardAdapter& op, const gpu::Properties&) {
  return std::max(PartialBytes(op.up.cols, op.x.cols, op.x.rows),
                  PartialBytes(op.dy.cols, op.low.cols, op.x.rows));
}
int64_t WorkspaceBytes(const AttentionBackward& op, const gpu::Properties&) {
  return op.q.rows * op.shape.query_heads * int64_t{sizeof(float)};
}
int64_t WorkspaceBytes(const LinearCrossEntropy& op, const gpu::Properties& card) {
  return PlanOf(op, card).bytes;
}
int64_t WorkspaceBytes(const NormAndFinite& op, const gpu::Properties&) {
  return CeilDiv(op.x.Count(), kReduceChunk) * kChunkSumBytes;
}
int64_t WorkspaceBytes(const ContentHash& op, const gpu::Properties&) {
  return CeilDiv(op.x.Count() * SizeOf(op.x.dtype), kHashChunk) * int64_t{sizeof(uint64_t)};
}
int64_t WorkspaceBytes(const Quantize& op, const gpu::Properties&) { return LayoutOf(op).bytes; }

#define QLORA_NO_WORKSPACE(OpType) \
  int64_t WorkspaceBytes(const OpType&, const gpu::Properties&) { return 0; }
QLORA_NO_WORKSPACE(EmbeddingForward)
QLORA_NO_WORKSPACE(EmbeddingBackward)
QLORA_NO_WORKSPACE(RmsNormForward)
QLORA_NO_WORKSPACE(RmsNormBackward)
QLORA_NO_WORKSPACE(Rope)
QLORA_NO_WORKSPACE(LinearBackwardWeight)
QLORA_NO_WORKSPACE(AttentionForward)
QLORA_NO_WORKSPACE(KvAppend)
QLORA_NO_WORKSPACE(GatedActivationForward)
QLORA_NO_WORKSPACE(GatedActivationBackward)
QLORA_NO_WORKSPACE(AdamW)
QLORA_NO_WORKSPACE(AddGradient)
QLORA_NO_WORKSPACE(Zero)
QLORA_NO_WORKSPACE(GradientScale)
QLORA_NO_WORKSPACE(Dequantize)
QLORA_NO_WORKSPACE(Pack)
QLORA_NO_WORKSPACE(Unpack)
#undef QLORA_NO_WORKSPACE

int64_t WorkspaceBytes(const Op& op, const gpu::Properties& card) {
  return std::visit([&](const auto& o) { return WorkspaceBytes(o, card); }, op);
}

ChunkPlan PlanOf(const LinearCrossEntropy& op, const gpu::Properties& card) {
  return PlanChunks(op, [&](const Op& product) { return WorkspaceBytes(product, card); });
}

int64_t SlabOf(int64_t rows, int64_t columns, int64_t depth) {
  constexpr int64_t kSlab = 512, kEnoughResults = int64_t{1} << 20;
  return depth > kSlab && rows * columns < kEnoughResults ? kSlab : 0;
}

int64_t PartialBytes(int64_t rows, int64_t columns, int64_t depth) {
  const int64_t slab = SlabOf(rows, columns, depth);
  return slab == 0 ? 0 : CeilDiv(depth, slab) * rows * columns * 4;
}

QuantizeLayout LayoutOf(const Quantize& op) {
  const int64_t blocks = op.spec.BlockCount(op.w.Count());
  QuantizeLayout layout = {};
  if (op.spec.double_quant) {
    layout.absmax_at = CeilDiv(blocks, quant::QuantSpec::kMeanChunkBlocks) * 8;
    layout.count_at = layout.absmax_at + blocks * 4;
  }
  layout.bytes = layout.count_at + 4;
  return layout;
}

}  // namespace qlora::kernels::cuda
