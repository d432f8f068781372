#include "kernels/cuda/hopper_product.h"
#include "kernels/cuda/linear_dequantized.h"
#include "kernels/cuda/linear_skinny.h"
#include "kernels/cuda/product.h"

namespace qlora::kernels::cuda {

void Run(const LinearForward& op, const Context& context) {
  if (op.variant == LinearVariant::kDequantized) return RunDequantized(op, context);
  if (op.variant == LinearVariant::kHopper) return RunHopperProduct(op, context);
  if (IsSkinny(op)) return RunSkinny(op, context);
  Product product;
  if (op.base.kind != LinearBase::Kind::kNone) {
    ProductTerm* term = AddTerm(&product, context);
    term->a = DenseOperand(op.x, false);
    term->b = BaseOperand(op.base, false, &product);
    term->depth = op.base.in_features;
  }
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& segment = op.adapters[i];
    if (segment.a.rows == 0) continue;
    if (!segment.IsLowGiven()) {
      RunFirstProduct(LinearForward::kName, op.x, FirstProductOf(op, i), op.live_rows, context);
    }
    ProductTerm* up = AddTerm(&product, context);
    up->a = DenseOperand(LowOf(op, i), false);
    up->b = DenseOperand(segment.b, false);
    up->depth = segment.a.rows;
    up->range = PointerOf(segment.rows);
    up->scale = segment.scale;
  }
  product.rows = op.x.rows;
  product.columns = op.base.out_features;
  product.live = PointerOf(op.live_rows);
  product.bias = op.bias;
  product.c = op.y;
  RunProduct(LinearForward::kName, product, op.x.dtype == DType::kBf16, context);
}

}  // namespace qlora::kernels::cuda
