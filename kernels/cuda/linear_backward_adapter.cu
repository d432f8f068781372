#include <algorithm>

#include "kernels/cuda/product.h"

namespace qlora::kernels::cuda {
namespace {

// One of the two gradients: sums over the tokens of a segment.
Product OverTokens(const LinearBackwardAdapter& op, const Tensor& gradient) {
  Product product;
  product.rows = gradient.rows;
  product.columns = gradient.cols;
  product.live = PointerOf(op.live_rows);
  product.live_is_depth = true;
  product.accumulate = op.accumulate;
  product.c = gradient;
  product.slab = SlabOf(gradient.rows, gradient.cols, op.x.rows);
  product.partial = static_cast<float*>(op.workspace.data);
  return product;
}

}  // namespace

void Run(const LinearBackwardAdapter& op, const Context& context) {
  const bool bf16 = op.x.dtype == DType::kBf16;
  if (op.da) {
    Product product = OverTokens(op, op.da);
    ProductTerm* term = AddTerm(&product, context);
    term->a = DenseOperand(op.up, true);
    term->b = DenseOperand(op.x, true);
    term->depth = op.x.rows;
    term->range = PointerOf(op.rows);
    term->mask_b = MaskOf(op.dropout, op.x.cols, op.rows);
    if (term->mask_b.threshold > 0) product.alpha = KeptScale(op.dropout);
    RunProduct(LinearBackwardAdapter::kName, product, bf16, context);
  }
  if (op.db) {
    Product product = OverTokens(op, op.db);
    ProductTerm* term = AddTerm(&product, context);
    term->a = DenseOperand(op.dy, true);
    term->b = DenseOperand(op.low, true);
    term->depth = op.x.rows;
    term->range = PointerOf(op.rows);
    product.alpha = op.scale;
    RunProduct(LinearBackwardAdapter::kName, product, bf16, context);
  }
}

}  // namespace qlora::kernels::cuda
