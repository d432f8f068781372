#include "kernels/cuda/elements.h"
#include "kernels/cuda/product.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// dbias += Σ_t dy: one warp has 32 columns, its block's warps share the rows; their sums are added
// in the warps' order.
template <class T>
QLORA_KERNEL void BiasGradient(ConstTensor dy, LiveRows live, bool accumulate, Tensor dbias) {
  gpu::SharedMemory memory;
  gpu::Shared<float> sums = memory.Take<float>(kThreads);
  const int64_t rows = LiveRowCount(live, dy.rows);
  const int64_t column = gpu::BlockX() * 32 + gpu::Lane();
  float sum = 0.0f;
  if (column < dy.cols) {
    for (int64_t t = gpu::Warp(); t < rows; t += kWarps) sum += Widen(RowOf<T>(dy, t)[column]);
  }
  sums[gpu::ThreadX()] = sum;
  gpu::SyncThreads();
  if (gpu::Warp() != 0 || column >= dy.cols) return;
  float total = 0.0f;
  for (int warp = 0; warp < kWarps; ++warp) {
    const float other = sums[warp * 32 + gpu::Lane()];
    total += other;
  }
  float* to = RowOf<float>(dbias, 0) + column;
  *to = accumulate ? *to + total : total;
}

}  // namespace

void Run(const LinearBackwardWeight& op, const Context& context) {
  if (op.dweight) {
    Product product;
    product.rows = op.dy.cols;
    product.columns = op.x.cols;
    product.live = PointerOf(op.live_rows);
    product.live_is_depth = true;
    product.accumulate = op.accumulate;
    product.c = op.dweight;
    ProductTerm* term = AddTerm(&product, context);
    term->a = DenseOperand(op.dy, true);
    term->b = DenseOperand(op.x, true);
    term->depth = op.x.rows;
    RunProduct(LinearBackwardWeight::kName, product, op.x.dtype == DType::kBf16, context);
  }
  if (!op.dbias) return;
  DispatchActivation(op.dy.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    gpu::Launch(
        context.launcher, LinearBackwardWeight::kName, &BiasGradient<T>,
        {.blocks_x = CeilDiv(op.dy.cols, 32), .threads = kThreads, .shared_bytes = kThreads * 4},
        op.dy, op.live_rows, op.accumulate, op.dbias);
  });
}

}  // namespace qlora::kernels::cuda
