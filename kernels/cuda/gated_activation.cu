#include "kernels/cuda/ops.h"
#include "kernels/cuda/vectors.h"
#include "kernels/ops/gated_activation.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// act(z), and act'(z) where it is asked for.
QLORA_DEVICE float Activate(Activation activation, float z, float* slope) {
  if (activation == Activation::kSilu) {
    const float sigmoid = 1.0f / (1.0f + expf(-z));
    if (slope != nullptr) *slope = sigmoid * (1.0f + z * (1.0f - sigmoid));
    return z * sigmoid;
  }
  constexpr float kRoot = 0.7978845608028654f;  // √(2/π)
  constexpr float kCubic = 0.044715f;
  const float t = tanhf(kRoot * (z + kCubic * z * z * z));
  if (slope != nullptr) {
    *slope = 0.5f * (1.0f + t) + 0.5f * z * (1.0f - t * t) * kRoot * (1.0f + 3.0f * kCubic * z * z);
  }
  return 0.5f * z * (1.0f + t);
}

// A block is a stretch of kThreads vectors of one row.
template <class T>
QLORA_KERNEL void GatedForward(ConstTensor gate, ConstTensor up, LiveRows live,
                               Activation activation, Tensor out, bool whole) {
  const int64_t row = gpu::BlockX();
  if (row >= LiveRowCount(live, out.rows)) return;
  const int64_t first = (gpu::BlockY() * kThreads + gpu::ThreadX()) * kVector<T>;
  if (first >= out.cols) return;
  float z[kVector<T>], u[kVector<T>];
  LoadVector(RowOf<T>(gate, row), first, out.cols, whole, z);
  LoadVector(RowOf<T>(up, row), first, out.cols, whole, u);
  QLORA_UNROLL
  for (int i = 0; i < kVector<T>; ++i) u[i] *= Activate(activation, z[i], nullptr);
  StoreVector(RowOf<T>(out, row), first, out.cols, whole, u);
}

// Each thread has read its own elements of all three before it writes: outputs may be inputs.
template <class T>
QLORA_KERNEL void GatedBackward(ConstTensor gate, ConstTensor up, ConstTensor dout, LiveRows live,
                                Activation activation, Tensor dgate, Tensor dup, bool whole) {
  const int64_t row = gpu::BlockX();
  if (row >= LiveRowCount(live, dgate.rows)) return;
  const int64_t first = (gpu::BlockY() * kThreads + gpu::ThreadX()) * kVector<T>;
  if (first >= dgate.cols) return;
  float z[kVector<T>], u[kVector<T>], d[kVector<T>];
  LoadVector(RowOf<T>(gate, row), first, dgate.cols, whole, z);
  LoadVector(RowOf<T>(up, row), first, dgate.cols, whole, u);
  LoadVector(RowOf<T>(dout, row), first, dgate.cols, whole, d);
  QLORA_UNROLL
  for (int i = 0; i < kVector<T>; ++i) {
    float slope;
    const float value = Activate(activation, z[i], &slope);
    z[i] = d[i] * u[i] * slope;
    u[i] = d[i] * value;
  }
  StoreVector(RowOf<T>(dgate, row), first, dgate.cols, whole, z);
  StoreVector(RowOf<T>(dup, row), first, dgate.cols, whole, u);
}

template <class T>
gpu::LaunchShape ShapeFor(const Tensor& out) {
  return {.blocks_x = out.rows,
          .blocks_y = CeilDiv(out.cols, kThreads * kVector<T>),
          .threads = kThreads};
}

}  // namespace

void Run(const GatedActivationForward& op, const Context& context) {
  const bool whole = IsAligned(op.gate, 16) && IsAligned(op.up, 16) && IsAligned(op.out, 16);
  DispatchActivation(op.out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    gpu::Launch(context.launcher, GatedActivationForward::kName, &GatedForward<T>,
                ShapeFor<T>(op.out), op.gate, op.up, op.live_rows, op.activation, op.out, whole);
  });
}

void Run(const GatedActivationBackward& op, const Context& context) {
  const bool whole = IsAligned(op.gate, 16) && IsAligned(op.up, 16) && IsAligned(op.dout, 16) &&
                     IsAligned(op.dgate, 16) && IsAligned(op.dup, 16);
  DispatchActivation(op.dgate.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    gpu::Launch(context.launcher, GatedActivationBackward::kName, &GatedBackward<T>,
                ShapeFor<T>(op.dgate), op.gate, op.up, op.dout, op.live_rows, op.activation,
                op.dgate, op.dup, whole);
  });
}

}  // namespace qlora::kernels::cuda
