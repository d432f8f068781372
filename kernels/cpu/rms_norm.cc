#include "kernels/ops/rms_norm.h"

#include "kernels/cpu/ops.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"

namespace qlora::kernels::cpu {
namespace {

constexpr int64_t kWeightColumns = 64;

// Live tokens times rows per token.
int64_t RowCount(const LiveRows& live_rows, int64_t rows, int64_t rows_per_token) {
  return LiveRowCount(live_rows, rows / rows_per_token) * rows_per_token;
}

}  // namespace

void Run(const RmsNormForward& op, const Context& context) {
  const int64_t rows = RowCount(op.live_rows, op.x.rows, op.rows_per_token);
  ForRowTiles(context.pool, rows, op.x.cols, [&](int64_t begin, int64_t end) {
    SimdFor(context.isa).rms_norm_forward(op, begin, end);
  });
  for (const FirstProduct& product : op.products) {
    RunFirstProduct(op.y, product, rows, op.workspace.data, context.pool, KernelsOf(context.isa));
  }
}
int64_t WorkspaceBytes(const RmsNormForward& op, Isa) {
  return op.products.empty() ? 0 : ProductWorkspaceBytes(op.x.rows, {op.x.cols});
}

void Run(const RmsNormBackward& op, const Context& context) {
  const int64_t rows = RowCount(op.live_rows, op.dy.rows, op.rows_per_token);
  const SimdKernels& simd = SimdFor(context.isa);
  // First, because dx may overwrite dy.
  if (op.dweight) {
    ForTiles(context.pool, op.dy.cols, kWeightColumns, [&](int64_t begin, int64_t end) {
      simd.rms_norm_backward_weight(op, rows, begin, end);
    });
  }
  ForRowTiles(context.pool, rows, op.dy.cols,
              [&](int64_t begin, int64_t end) { simd.rms_norm_backward(op, begin, end); });
}
int64_t WorkspaceBytes(const RmsNormBackward&, Isa) { return 0; }

}  // namespace qlora::kernels::cpu
