// The forward pass for 1 to 8 rows, bound by reading the weights: each row of W is decoded (or
// widened) into L1 and multiplied with all rows of x. Chosen by the capacity of x, not by the live
// rows.
//
// Its sums run in two sets of vector lanes instead of the one chain of gemm.h: the last bits differ
// from those of the same row in a larger batch. They depend on the row alone here too, not on the
// other rows or the threads.

#ifndef QLORA_KERNELS_CPU_LINEAR_GEMV_H_
#define QLORA_KERNELS_CPU_LINEAR_GEMV_H_

#include "kernels/cpu/product.h"

namespace qlora::kernels::cpu {

inline constexpr int64_t kGemvRows = 8;

inline bool IsGemv(const LinearForward& op) { return op.x.rows <= kGemvRows; }
int64_t GemvWorkspaceBytes(const LinearForward& op);
void RunGemv(const LinearForward& op, int64_t live, ThreadPool& pool, const KernelSet& kernels);

// LinearForward with kernels of one's own choice, for tests.
void RunLinearForward(const LinearForward& op, ThreadPool& pool, const KernelSet& kernels);

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_LINEAR_GEMV_H_
