// Products on the CPU: C = alpha · A · Bᵀ, in fp32, with operands widened or decoded while they are
// packed.
//
// Every element of C is one chain of fused multiply-adds over k = 0, 1, 2 … (multiply, then add, in
// portable code; pairs 1, 0, 3, 2 … with vdpbf16ps): it depends on its row of A, its row of B and
// the instruction set alone, not on M, N, tiles or threads. A row computed among 2048 others has
// the bytes it has alone.

#ifndef QLORA_KERNELS_CPU_GEMM_H_
#define QLORA_KERNELS_CPU_GEMM_H_

#include "kernels/cpu/ops.h"
#include "kernels/ops/linear.h"
#include "kernels/tensor.h"

namespace qlora::kernels::cpu {

// One side of a product: element (i, k) of a matrix [rows, depth]. Borrowed memory.
struct GemmOperand {
  // bf16, f16 or f32: [rows, depth], or [depth, rows] where `transposed`.
  ConstTensor dense;
  // Instead of `dense`: 4-bit weights, row-major like it. Only as the B side.
  const QuantizedTensor* quantized = nullptr;
  int64_t rows = 0;
  int64_t depth = 0;
  bool transposed = false;
  // Where given, storage row j of `dense` stands at dense.Row(index[j]): `rows` entries, or `depth`
  // of them where `transposed`.
  const int32_t* index = nullptr;
};

// Storage of a [rows, depth] operand as it is, and of one stored as [depth, rows].
inline GemmOperand AsStored(ConstTensor t) { return {t, nullptr, t.rows, t.cols, false, nullptr}; }
inline GemmOperand AsTransposed(ConstTensor t) {
  return {t, nullptr, t.cols, t.rows, true, nullptr};
}
// W [N, K] as the B side of x·Wᵀ (depth K), and of dy·W (depth N). The base must outlive the
// operand; not kNone.
GemmOperand BaseRows(const LinearBase& base);
GemmOperand BaseColumns(const LinearBase& base);

struct GemmProblem {
  GemmOperand a;  // M = a.rows
  GemmOperand b;  // N = b.rows, same depth
  // Elements enter the product rounded to bf16 (a no-op for bf16 storage); otherwise as fp32.
  bool round_to_bf16 = false;
  float alpha = 1.0f;       // multiplies the finished sum
  bool accumulate = false;  // C += instead of C =; for bf16 C the sum is rounded once
  Tensor c;                 // bf16 or f32 [M, N], any pitch; no overlap with the operands
};

// Bytes of workspace for products of at most `m` rows of A and that depth.
int64_t GemmWorkspaceBytes(int64_t m, int64_t depth, Isa isa);

// Runs the product on all threads of the context. `workspace` is 64-byte aligned and as large as
// GemmWorkspaceBytes says for (a.rows, depth) or larger ones. Depth 0 gives zeros (or leaves C).
void Gemm(const GemmProblem& problem, void* workspace, const Context& context);

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_GEMM_H_
