#include "kernels/cuda/elements.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/embedding.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// One block a token.
template <class W, class Y>
QLORA_KERNEL void EmbeddingForwardKernel(ConstTensor ids, ConstTensor table, LiveRows live,
                                         float scale, Tensor y) {
  const int64_t t = gpu::BlockX();
  if (t >= LiveRowCount(live, y.rows)) return;
  const W* from = RowOf<W>(table, *RowOf<int32_t>(ids, t));
  Y* to = RowOf<Y>(y, t);
  for (int64_t c = gpu::ThreadX(); c < y.cols; c += kThreads) {
    to[c] = Narrow<Y>(scale * Widen(from[c]));
  }
}

// One block a token: the first token with its id adds the rows of all that have it, in order; the
// others find that they are not the first and end. So no two blocks write the same row, and no sum
// depends on who comes first.
template <class T>
QLORA_KERNEL void EmbeddingBackwardKernel(ConstTensor ids, ConstTensor dy, LiveRows live,
                                          float scale, Tensor dtable) {
  const int64_t rows = LiveRowCount(live, dy.rows), t = gpu::BlockX();
  if (t >= rows) return;
  gpu::SharedMemory memory;
  gpu::Shared<int32_t> seen = memory.Take<int32_t>(kThreads);
  const int32_t id = *RowOf<int32_t>(ids, t);
  int32_t before = 0;
  for (int64_t i = gpu::ThreadX(); i < t; i += kThreads) {
    before |= *RowOf<int32_t>(ids, i) == id ? 1 : 0;
  }
  seen[gpu::ThreadX()] = before;
  gpu::SyncThreads();
  for (int i = 0; i < kThreads; ++i) {
    const int32_t other = seen[i];
    if (other != 0) return;  // all threads alike
  }
  float* to = RowOf<float>(dtable, id);
  for (int64_t i = t; i < rows; ++i) {
    if (*RowOf<int32_t>(ids, i) != id) continue;
    const T* from = RowOf<T>(dy, i);
    for (int64_t c = gpu::ThreadX(); c < dy.cols; c += kThreads) to[c] += scale * Widen(from[c]);
  }
}

}  // namespace

void Run(const EmbeddingForward& op, const Context& context) {
  DispatchWeight(op.table.dtype, [&](auto w) {
    DispatchActivation(op.y.dtype, [&](auto y) {
      using W = typename decltype(w)::Type;
      using Y = typename decltype(y)::Type;
      gpu::Launch(context.launcher, EmbeddingForward::kName, &EmbeddingForwardKernel<W, Y>,
                  {.blocks_x = op.y.rows, .threads = kThreads}, op.ids, op.table, op.live_rows,
                  op.scale, op.y);
    });
  });
}

void Run(const EmbeddingBackward& op, const Context& context) {
  DispatchActivation(op.dy.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    gpu::Launch(context.launcher, EmbeddingBackward::kName, &EmbeddingBackwardKernel<T>,
                {.blocks_x = op.dy.rows, .threads = kThreads, .shared_bytes = kThreads * 4}, op.ids,
                op.dy, op.live_rows, op.scale, op.dtable);
  });
}

}  // namespace qlora::kernels::cuda
