// The product behind every linear op: C = alpha · Σ_terms A · Bᵀ + bias, one chain of sums over all
// terms.
//
// How it runs: rows are cut into chunks of at most kChunkRows; A's chunk is packed once into the
// shared workspace; tiles of C then go to the threads, each of which packs (or decodes) its own
// slice of B, kDepthWords at a time, and carries its tile of sums through memory, so that the chain
// of an element is the same however C was cut.

#ifndef QLORA_KERNELS_CPU_PRODUCT_H_
#define QLORA_KERNELS_CPU_PRODUCT_H_

#include <initializer_list>

#include "absl/types/span.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_kernels.h"

namespace qlora::kernels::cpu {

// Dropout of an operand or of a term's sum; element (t, k) counts from the term's first row.
struct DropoutView {
  DropoutArgs args;
  int64_t columns = 0;
};

struct ProductTerm {
  GemmOperand a, b;
  bool round_to_bf16 = false;
  float scale = 1.0f;  // of A's elements, after rounding
  // The rows of C that the term adds to; A's row 0 is row `begin`. `end` < 0: all rows.
  int64_t begin = 0, end = -1;
  // At most one of them: zeroes elements of A (stored as rows) or B (stored transposed); or zeroes
  // elements of the term's own sum and multiplies the others by `kept_scale` before they join C.
  const DropoutView* drop_a = nullptr;
  const DropoutView* drop_b = nullptr;
  const DropoutView* drop_sum = nullptr;
  float kept_scale = 1.0f;
};

struct Product {
  int64_t rows = 0, columns = 0;  // M, N
  absl::Span<const ProductTerm> terms;
  float alpha = 1.0f;
  ConstTensor bias;  // bf16, f16 or f32 [1, N], or empty
  bool accumulate = false;
  Tensor c;  // bf16 or f32, at least M × N
};

// Rows of A packed at a time: what a 4-bit weight is decoded for once.
inline constexpr int64_t kChunkRows = 560;

// Bytes of workspace for at most `rows` rows and terms of these depths.
int64_t ProductWorkspaceBytes(int64_t rows, absl::Span<const int64_t> depths);

void RunProduct(const Product& product, void* workspace, ThreadPool& pool,
                const KernelSet& kernels);

// low = (D∘x) · Aᵀ over the first `live` rows of x that the adapter serves. The workspace is
// ProductWorkspaceBytes(x.rows, {x.cols}).
void RunFirstProduct(const ConstTensor& x, const FirstProduct& first, int64_t live, void* workspace,
                     ThreadPool& pool, const KernelSet& kernels);

// Pointers and values out of the views.
DecodeSource SourceOf(const QuantizedTensor& q);
DropoutArgs ArgsOf(const Dropout& dropout);

// Rows [begin, end) of a segment in a batch of `live` rows.
struct RowRange {
  int64_t begin, end;
};
RowRange RangeOf(const ConstTensor& rows, int64_t live);
int64_t LiveRowsOf(const LiveRows& live, int64_t capacity);

inline ConstTensor RowsOf(ConstTensor t, const RowRange& range) {
  t.data = static_cast<const uint8_t*>(t.data) + range.begin * t.pitch * SizeOf(t.dtype);
  t.rows = range.end - range.begin;
  return t;
}

inline float KeptScale(float probability) { return 1.0f / (1.0f - probability); }

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_PRODUCT_H_
