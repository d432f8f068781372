#include "kernels/cuda/linear_dequantized_layout.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/dense_matmul.h"
#include "kernels/cuda/views.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int64_t kWorkspaceAlignment = 256;
// Adapters' ranks together are rounded up to this: the depth of one tensor-core step.
constexpr int64_t kTailAlignment = 16;

bool IsPowerOfTwo(float x) {
  int exponent;
  return std::frexp(std::fabs(x), &exponent) == 0.5f;
}

bool AreConcatenable(const std::vector<AdapterSegment>& adapters, bool dropout) {
  if (adapters.size() > kMaxDequantizedSegments) return false;
  return std::all_of(adapters.begin(), adapters.end(), [&](const AdapterSegment& s) {
    return s.rows.cols == 0 && IsPowerOfTwo(s.scale) && (dropout || !(s.dropout.probability > 0));
  });
}

bool IsExpandable(const LinearBase& base) {
  if (base.out_features % kDequantizedElements != 0 || base.in_features % kDequantizedElements != 0)
    return false;
  if (base.kind == LinearBase::Kind::kQuantized) return IsAligned(base.quantized.codes, 4);
  return base.kind == LinearBase::Kind::kDense && base.dense.dtype == DType::kBf16 &&
         IsAligned(base.dense, 16);
}

// The expanded weight is [weight_rows, weight_columns]; activations of `depth` are widened where
// `tail` columns more are needed and do not lie `behind` them.
DequantizedLayout Arrange(const LinearBase& base, int64_t weight_rows, int64_t weight_columns,
                          int64_t rows, int64_t depth, int64_t tail, const Tensor& behind,
                          const Tensor& workspace) {
  DequantizedLayout layout;
  uint8_t* const begin = static_cast<uint8_t*>(workspace.data);
  const auto take = [&](int64_t bytes) {
    uint8_t* const at = begin + layout.bytes;
    layout.bytes += AlignUp(bytes, kWorkspaceAlignment);
    return at;
  };
  // The library's part first: a workspace begins at a multiple of 64 bytes only.
  layout.bytes = AlignUp(reinterpret_cast<uintptr_t>(begin), kWorkspaceAlignment) -
                 reinterpret_cast<uintptr_t>(begin);
  layout.library = take(gpu::kDenseMatmulWorkspaceBytes);
  const auto matrix = [&](int64_t r, int64_t c) {
    return Tensor{take(r * c * 2), DType::kBf16, r, c, c};
  };
  if (tail > 0 || base.kind == LinearBase::Kind::kQuantized) {
    layout.weight = matrix(weight_rows, weight_columns);
  }
  if (tail > 0 && behind.cols == 0) layout.wide = matrix(rows, depth + tail);
  return layout;
}

int64_t BytesOf(const DequantizedLayout& layout) { return layout.bytes + kWorkspaceAlignment; }

}  // namespace

DequantizedLayout LayoutOf(const LinearForward& op) {
  const int64_t tail = DequantizedTailColumns(op.adapters);
  const LinearBase& base = op.base;
  return Arrange(base, base.out_features, base.in_features + tail, op.x.rows, base.in_features,
                 tail, op.tail, op.workspace);
}

DequantizedLayout LayoutOf(const LinearBackwardInput& op) {
  const int64_t tail = DequantizedTailColumns(op.adapters);
  const LinearBase& base = op.base;
  return Arrange(base, base.out_features + tail, base.in_features, op.dy.rows, base.out_features,
                 tail, op.tail, op.workspace);
}

bool IsDequantizable(const LinearForward& op) {
  return op.x.dtype == DType::kBf16 && op.y.dtype == DType::kBf16 && IsAligned(op.x, 16) &&
         IsAligned(op.y, 16) && IsExpandable(op.base) &&
         AreConcatenable(op.adapters, /*dropout=*/true) &&
         (op.bias.cols == 0 || op.bias.dtype == DType::kBf16);
}

bool IsDequantizable(const LinearBackwardInput& op) {
  return op.dy.dtype == DType::kBf16 && op.dx.cols != 0 && IsAligned(op.dy, 16) &&
         IsAligned(op.dx, 16) && IsExpandable(op.base) &&
         AreConcatenable(op.adapters, /*dropout=*/false);
}

int64_t DequantizedTailColumns(const std::vector<AdapterSegment>& adapters) {
  int64_t ranks = 0;
  for (const AdapterSegment& segment : adapters) ranks += segment.a.rows;
  return AlignUp(ranks, kTailAlignment);
}
int64_t DequantizedWorkspaceBytes(const LinearForward& op) { return BytesOf(LayoutOf(op)); }
int64_t DequantizedWorkspaceBytes(const LinearBackwardInput& op) { return BytesOf(LayoutOf(op)); }

}  // namespace qlora::kernels::cuda
