#include "kernels/cuda/elements.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/rope.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// One block a token. A thread takes element pairs (i, i + half) of the heads, and what lies behind
// the rotary dimensions one by one; it reads both before it writes: y may be x.
template <class T>
QLORA_KERNEL void RopeKernel(ConstTensor x, ConstTensor positions, ConstTensor cos, ConstTensor sin,
                             LiveRows live, int head_size, float sign, Tensor y) {
  const int64_t row = gpu::BlockX();
  if (row >= LiveRowCount(live, y.rows)) return;
  const int64_t position = *RowOf<int32_t>(positions, row);
  const float* c = RowOf<float>(cos, position);
  const float* s = RowOf<float>(sin, position);
  const T* from = RowOf<T>(x, row);
  T* to = RowOf<T>(y, row);
  const int half = int(cos.cols), heads = int(x.cols / head_size);
  for (int i = gpu::ThreadX(); i < heads * half; i += kThreads) {
    const int pair = i % half, at = i / half * head_size + pair;
    const float a = Widen(from[at]), b = Widen(from[at + half]);
    const float cosine = c[pair], sine = sign * s[pair];
    to[at] = Narrow<T>(a * cosine - b * sine);
    to[at + half] = Narrow<T>(b * cosine + a * sine);
  }
  const int rest = head_size - 2 * half;
  for (int i = gpu::ThreadX(); i < heads * rest; i += kThreads) {
    const int at = i / rest * head_size + 2 * half + i % rest;
    to[at] = from[at];
  }
}

}  // namespace

void Run(const Rope& op, const Context& context) {
  DispatchActivation(op.y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    gpu::Launch(context.launcher, Rope::kName, &RopeKernel<T>,
                {.blocks_x = op.y.rows, .threads = kThreads}, op.x, op.positions, op.cos, op.sin,
                op.live_rows, int(op.head_size), op.inverse ? -1.0f : 1.0f, op.y);
  });
}

}  // namespace qlora::kernels::cuda
