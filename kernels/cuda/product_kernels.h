// The two kernels of product.h, and the end of a product that they share.

#ifndef QLORA_KERNELS_CUDA_PRODUCT_KERNELS_H_
#define QLORA_KERNELS_CUDA_PRODUCT_KERNELS_H_

#include "kernels/cuda/elements.h"
#include "kernels/cuda/product.h"

namespace qlora::kernels::cuda {

// Start one slab a block in the grid's third dimension, each into its part of `partial`; or the
// whole product into C.
void LaunchBf16Product(const char* name, const Product& product, int64_t slabs,
                       const Context& context);
void LaunchF32Product(const char* name, const Product& product, int64_t slabs,
                      const Context& context);

// ---- In kernels

// What the device says about a product: which rows of C exist, how much depth there is.
struct ProductBounds {
  Range rows;    // of C
  int64_t live;  // what term ranges lie within
};
QLORA_DEVICE ProductBounds BoundsOf(const Product& p) {
  const int64_t capacity = p.live_is_depth ? p.terms[0].depth : p.rows;
  int64_t live = capacity;
  if (p.live != nullptr && *p.live < capacity) live = *p.live;
  if (p.live_is_depth) return {{0, p.rows}, live};
  return {RangeWithin(p.range, live), live};
}

// Rows of A and the stretch of depth that a term has, within this block's slab.
struct TermBounds {
  Range rows, depth;
};
QLORA_DEVICE TermBounds BoundsOf(const Product& p, const ProductTerm& term, int64_t live) {
  const Range range = RangeWithin(term.range, live);
  TermBounds bounds = {range, {0, term.depth}};
  if (p.live_is_depth) bounds = {{0, p.rows}, range};
  if (p.slab > 0) {
    const int64_t begin = bounds.depth.begin + gpu::BlockZ() * p.slab, end = begin + p.slab;
    bounds.depth.begin = begin;
    if (bounds.depth.end > end) bounds.depth.end = end;
  }
  return bounds;
}

// One element of C from its sum.
QLORA_DEVICE void StoreResult(const Product& p, int64_t row, int64_t column, float sum) {
  if (p.slab > 0) {
    p.partial[(gpu::BlockZ() * p.rows + row) * p.columns + column] = sum;
    return;
  }
  sum *= p.alpha;
  if (p.bias.data != nullptr) sum += WidenAt(p.bias, 0, column);
  if (p.c.dtype == DType::kF32) {
    float* c = RowOf<float>(p.c, row) + column;
    *c = p.accumulate ? *c + sum : sum;
  } else {
    Bf16* c = RowOf<Bf16>(p.c, row) + column;
    *c = Narrow<Bf16>(p.accumulate ? Widen(*c) + sum : sum);
  }
}

// Element (outer, k) of an operand, widened; its place must exist.
QLORA_DEVICE float ElementOf(const Product& p, const Operand& o, int64_t outer, int64_t k) {
  const int64_t row = o.transposed ? k : outer, column = o.transposed ? outer : k;
  if (o.quantized) {
    const int64_t i = row * o.pitch + column;
    return p.base.values[CodeAt(p.base, i)] * BlockScale(p.base, i >> p.base.log2_block);
  }
  return WidenAt({o.data, o.dtype, 0, 0, o.pitch}, row, column);
}

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_PRODUCT_KERNELS_H_
