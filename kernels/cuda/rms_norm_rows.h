// What the two forward kernels of RMSNorm compute alike, to the bit: operands, formulas, and the
// order of a row's sum of squares.

#ifndef QLORA_KERNELS_CUDA_RMS_NORM_ROWS_H_
#define QLORA_KERNELS_CUDA_RMS_NORM_ROWS_H_

#include <cmath>

#include "kernels/cuda/vectors.h"
#include "kernels/ops/rms_norm.h"

namespace qlora::kernels::cuda {

// Rows up to this get a warp: 32 lanes take the row's vectors in turn, each has one sum, and a
// WarpSum adds those. Longer rows get 8 warps, whose sums are added in order.
inline constexpr int64_t kWarpRow = 512;
inline constexpr int kNormWarps = 8;

struct NormForward {
  ConstTensor x, residual, weight;
  LiveRows live;
  int64_t rows_per_token;
  float epsilon, weight_offset;
  Tensor sum, y, rstd;
};
inline NormForward NormForwardOf(const RmsNormForward& op) {
  return {op.x,       op.residual,      op.weight, op.live_rows, op.rows_per_token,
          op.epsilon, op.weight_offset, op.sum,    op.y,         op.rstd};
}
// s += residual, as it is stored.
template <class T>
QLORA_DEVICE void AddResidual(float (&s)[kVector<T>], const float (&residual)[kVector<T>]) {
  QLORA_UNROLL
  for (int i = 0; i < kVector<T>; ++i) s[i] = Widen(Narrow<T>(s[i] + residual[i]));
}
QLORA_DEVICE float RstdOf(const NormForward& a, float squares) {
  return 1.0f / sqrtf(squares / float(a.x.cols) + a.epsilon);
}
QLORA_DEVICE float Normed(const NormForward& a, float s, float rstd, float weight) {
  return s * rstd * (a.weight_offset + weight);
}

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_RMS_NORM_ROWS_H_
