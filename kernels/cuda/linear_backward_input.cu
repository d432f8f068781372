#include "kernels/cuda/hopper_product.h"
#include "kernels/cuda/linear_dequantized.h"
#include "kernels/cuda/product.h"

namespace qlora::kernels::cuda {

void Run(const LinearBackwardInput& op, const Context& context) {
  if (op.variant == LinearVariant::kDequantized) return RunDequantized(op, context);
  if (op.variant == LinearVariant::kHopper) return RunHopperProduct(op, context);
  const bool bf16 = op.dy.dtype == DType::kBf16;
  const Operand dy = DenseOperand(op.dy, false);
  Product product;
  if (op.base.kind != LinearBase::Kind::kNone) {
    ProductTerm* term = AddTerm(&product, context);
    term->a = dy;
    term->b = BaseOperand(op.base, true, &product);
    term->depth = op.base.out_features;
  }
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& segment = op.adapters[i];
    if (segment.a.rows == 0) continue;
    Product up;
    up.rows = op.dy.rows;
    up.columns = segment.a.rows;
    up.live = PointerOf(op.live_rows);
    up.range = PointerOf(segment.rows);
    up.alpha = segment.scale;
    up.c = op.up[i];
    ProductTerm* down = AddTerm(&up, context);
    down->a = dy;
    down->b = DenseOperand(segment.b, true);
    down->depth = op.base.out_features;
    RunProduct(LinearBackwardInput::kName, up, bf16, context);

    ProductTerm* term = AddTerm(&product, context);
    term->a = DenseOperand(op.up[i], false);
    term->b = DenseOperand(segment.a, true);
    term->depth = segment.a.rows;
    term->range = PointerOf(segment.rows);
    term->mask_sum = MaskOf(segment.dropout, op.base.in_features, segment.rows);
    if (term->mask_sum.threshold > 0) term->scale = KeptScale(segment.dropout);
  }
  if (!op.dx) return;
  product.rows = op.dy.rows;
  product.columns = op.base.in_features;
  product.live = PointerOf(op.live_rows);
  product.accumulate = op.accumulate;
  product.c = op.dx;
  RunProduct(LinearBackwardInput::kName, product, bf16, context);
}

}  // namespace qlora::kernels::cuda
