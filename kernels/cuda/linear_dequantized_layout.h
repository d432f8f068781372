// Which linear ops can run by the vendor's dense product, and how their workspace is laid out.

#ifndef QLORA_KERNELS_CUDA_LINEAR_DEQUANTIZED_LAYOUT_H_
#define QLORA_KERNELS_CUDA_LINEAR_DEQUANTIZED_LAYOUT_H_

#include <vector>

#include "kernels/ops/linear.h"

namespace qlora::kernels::cuda {

inline constexpr int kMaxDequantizedSegments = 8;
// Elements of a row that are written out at a time: 16 bytes of bf16, 4 bytes of codes.
inline constexpr int kDequantizedElements = 8;

// bf16 activations over a quantized or bf16 base; features in multiples of 8; adapters over all
// rows whose scale is a power of two (scale·B is then exact in bf16) and, in backward, without
// dropout; a bf16 bias; rows at multiples of 16 bytes. Asked before there are addresses and with
// them.
bool IsDequantizable(const LinearForward& op);
bool IsDequantizable(const LinearBackwardInput& op);

// Where the parts of a workspace lie.
struct DequantizedLayout {
  Tensor weight, wide;  // empty where the operand is used as it is
  void* library = nullptr;
  int64_t bytes = 0;
};
DequantizedLayout LayoutOf(const LinearForward& op);
DequantizedLayout LayoutOf(const LinearBackwardInput& op);

// Of `tail`: all ranks, rounded up.
int64_t DequantizedTailColumns(const std::vector<AdapterSegment>& adapters);
// Less with a `tail` than without.
int64_t DequantizedWorkspaceBytes(const LinearForward& op);
int64_t DequantizedWorkspaceBytes(const LinearBackwardInput& op);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_LINEAR_DEQUANTIZED_LAYOUT_H_
