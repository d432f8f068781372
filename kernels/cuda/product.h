// C = alpha · Σ_terms scale · A·Bᵀ (+ bias) (+ C), the product behind every linear op: dense or
// 4-bit operands, stored either way round, any shape, pitch and alignment, row ranges and dropout
// masks read on the device.
//
// With bf16 operands: tensor cores (mma.sync), 4-bit weights decoded into shared memory as
// bf16(value · scale); adapters are further terms of the same sum (concatenated along the depth),
// so they cost no pass over C. With fp32 operands: fp32 products of unrounded operands. Sums run
// over the depth in order, cut into slabs only by shape: the same bytes every time.

#ifndef QLORA_KERNELS_CUDA_PRODUCT_H_
#define QLORA_KERNELS_CUDA_PRODUCT_H_

#include "kernels/cuda/decode.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/linear.h"
#include "kernels/philox.h"

namespace qlora::kernels::cuda {

// A matrix [outer, depth]. Element (i, k) lies at i · pitch + k, or transposed at k · pitch + i.
struct Operand {
  const void* data = nullptr;
  int64_t pitch = 0;
  DType dtype = DType::kBf16;
  bool transposed = false;
  bool quantized = false;  // the product's base, a matrix with rows of `pitch` weights
  bool vector = false;     // every stored row begins at a multiple of 16 bytes
};

// Which elements of an operand, or of a sum, dropout keeps; element (t, k) has number (t − first
// row of the segment) · columns + k.
struct Mask {
  const int32_t* counter = nullptr;
  uint32_t key = 0;
  uint32_t threshold = 0;  // 0: keeps all
  int64_t columns = 0;
  const int32_t* range = nullptr;  // of the segment, or null: from row 0
};

struct ProductTerm {
  Operand a, b;  // [rows, depth], [columns, depth]
  int64_t depth = 0;
  const int32_t* range = nullptr;  // [begin, end) of what `live` counts, for this term
  float scale = 1.0f;
  Mask mask_a;    // numbers (row, depth)
  Mask mask_b;    // numbers (depth, column)
  Mask mask_sum;  // numbers (row, column): drops of the term's sum
};

inline constexpr int kMaxTerms = 12;

struct Product {
  ProductTerm terms[kMaxTerms];
  int term_count = 0;
  DecodeSource base = {};
  int64_t rows = 0, columns = 0;
  const int32_t* live = nullptr;  // how many rows hold data, or, with live_is_depth, how much depth
  const int32_t* range = nullptr;  // [begin, end): the only rows of C that are written
  bool live_is_depth = false;
  float alpha = 1.0f;
  bool accumulate = false;
  ConstTensor bias;
  Tensor c;  // bf16 or f32 [rows, columns]
  // The depth of one slab, 0 for all of it; slabs are summed by RunProduct in `partial`, f32
  // [slabs, rows, columns].
  int64_t slab = 0;
  float* partial = nullptr;
};

Operand DenseOperand(const ConstTensor& t, bool transposed);
Operand BaseOperand(const LinearBase& base, bool transposed, Product* product);
Mask MaskOf(const Dropout& dropout, int64_t columns, const ConstTensor& segment_rows);
// 1 / (1 − probability).
inline float KeptScale(const Dropout& dropout) { return 1.0f / (1.0f - dropout.probability); }
inline const int32_t* PointerOf(const ConstTensor& t) {
  return static_cast<const int32_t*>(t.data);
}

// `bf16`: whether operands enter as bf16. Fails the launcher where there are too many terms.
void RunProduct(const char* name, const Product& product, bool bf16, const Context& context);

// low = (D∘x) · Aᵀ on its own.
void RunFirstProduct(const char* name, const ConstTensor& x, const FirstProduct& first,
                     const LiveRows& live, const Context& context);

// Adds a term; Unimplemented is noted in the launcher where there is no room.
ProductTerm* AddTerm(Product* product, const Context& context);

// ---- In kernels

struct Range {
  int64_t begin, end;
};
// [begin, end) of a term or result within the first `count`.
QLORA_DEVICE Range RangeWithin(const int32_t* range, int64_t count) {
  if (range == nullptr) return {0, count};
  const int64_t begin = range[0], end = range[1];
  return {begin < count ? begin : count, end < count ? end : count};
}

QLORA_DEVICE bool IsKept(const Mask& mask, int64_t row, int64_t column) {
  if (mask.range != nullptr) row -= mask.range[0];
  const uint64_t element = uint64_t(row * mask.columns + column);
  const auto bits = DropoutBits(mask.counter, mask.key, element / 4);
  // Not by an index that is unknown when it is compiled: the four would lie in local memory.
  uint32_t own = bits[0];
  QLORA_UNROLL
  for (uint32_t i = 1; i < 4; ++i) {
    if (element % 4 == i) own = bits[i];
  }
  return own >= mask.threshold;
}

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_PRODUCT_H_
