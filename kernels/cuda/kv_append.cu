#include "kernels/cuda/elements.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/attention.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// One block a query row: it looks for its document and copies the row behind what the cache holds.
template <class T>
QLORA_KERNEL void KvAppendKernel(ConstTensor x, ConstTensor documents, const int32_t* count,
                                 Tensor cache) {
  const int64_t row = gpu::BlockX();
  for (int32_t d = 0; d < *count; ++d) {
    const int32_t* bounds = RowOf<int32_t>(documents, d);
    const int64_t i = row - bounds[0];
    if (i < 0 || i >= bounds[1]) continue;
    const T* from = RowOf<T>(x, row);
    T* to = RowOf<T>(cache, int64_t{bounds[2]} + bounds[3] - bounds[1] + i);
    for (int64_t c = gpu::ThreadX(); c < x.cols; c += kThreads) to[c] = from[c];
  }
}

}  // namespace

void Run(const KvAppend& op, const Context& context) {
  DispatchActivation(op.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    gpu::Launch(context.launcher, KvAppend::kName, &KvAppendKernel<T>,
                {.blocks_x = op.x.rows, .threads = kThreads}, op.x, op.documents,
                static_cast<const int32_t*>(op.document_count.data), op.cache);
  });
}

}  // namespace qlora::kernels::cuda
