#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/product_kernels.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Adds the slabs in order and does what the product would have done with the whole sum.
QLORA_KERNEL void SumSlabs(Product p, int64_t slabs) {
  const int64_t i = gpu::BlockX() * kThreads + gpu::ThreadX();
  if (i >= p.rows * p.columns) return;
  float sum = 0.0f;
  for (int64_t s = 0; s < slabs; ++s) sum += p.partial[s * p.rows * p.columns + i];
  float* c = RowOf<float>(p.c, i / p.columns) + i % p.columns;
  *c = p.accumulate ? *c + p.alpha * sum : p.alpha * sum;
}

}  // namespace

Operand DenseOperand(const ConstTensor& t, bool transposed) {
  Operand operand;
  operand.data = t.data;
  operand.pitch = t.pitch;
  operand.dtype = t.dtype;
  operand.transposed = transposed;
  operand.vector = IsAligned(t, 16);
  return operand;
}

Operand BaseOperand(const LinearBase& base, bool transposed, Product* product) {
  if (base.kind == LinearBase::Kind::kDense) return DenseOperand(base.dense, transposed);
  product->base = DecodeSourceOf(base.quantized);
  Operand operand;
  operand.pitch = base.in_features;
  operand.transposed = transposed;
  operand.quantized = true;
  // Eight weights are four bytes within one block where rows are whole multiples of eight.
  operand.vector = base.in_features % 8 == 0 && IsAligned(base.quantized.codes, 4);
  return operand;
}

Mask MaskOf(const Dropout& dropout, int64_t columns, const ConstTensor& segment_rows) {
  if (!(dropout.probability > 0)) return {};
  return {PointerOf(dropout.counter), dropout.key, DropoutThreshold(dropout.probability), columns,
          PointerOf(segment_rows)};
}

ProductTerm* AddTerm(Product* product, const Context& context) {
  if (product->term_count == kMaxTerms) {
    context.launcher.Fail(absl::UnimplementedError(
        absl::StrCat("a linear op on CUDA takes at most ", kMaxTerms - 1, " adapters")));
    return &product->terms[kMaxTerms - 1];
  }
  return &product->terms[product->term_count++];
}

void RunFirstProduct(const char* name, const ConstTensor& x, const FirstProduct& first,
                     const LiveRows& live, const Context& context) {
  Product product;
  product.rows = x.rows;
  product.columns = first.a.rows;
  product.live = PointerOf(live);
  product.range = PointerOf(first.rows);
  product.c = first.low;
  ProductTerm* term = AddTerm(&product, context);
  term->a = DenseOperand(x, false);
  term->b = DenseOperand(first.a, false);
  term->depth = x.cols;
  term->mask_a = MaskOf(first.dropout, x.cols, first.rows);
  if (term->mask_a.threshold > 0) product.alpha = KeptScale(first.dropout);
  RunProduct(name, product, x.dtype == DType::kBf16, context);
}

void RunProduct(const char* name, const Product& product, bool bf16, const Context& context) {
  if (product.rows == 0 || product.columns == 0) return;
  const int64_t slabs = product.slab == 0 ? 1 : CeilDiv(product.terms[0].depth, product.slab);
  if (bf16) {
    LaunchBf16Product(name, product, slabs, context);
  } else {
    LaunchF32Product(name, product, slabs, context);
  }
  if (product.slab == 0) return;
  gpu::Launch(context.launcher, name, &SumSlabs,
              {.blocks_x = CeilDiv(product.rows * product.columns, kThreads), .threads = kThreads},
              product, slabs);
}

}  // namespace qlora::kernels::cuda
