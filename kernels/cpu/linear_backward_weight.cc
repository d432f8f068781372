#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/product.h"

namespace qlora::kernels::cpu {
namespace {

// Columns of dbias that one task sums, over all rows in order.
constexpr int64_t kBiasColumns = 256;

}  // namespace

int64_t WorkspaceBytes(const LinearBackwardWeight& op, Isa) {
  return ProductWorkspaceBytes(op.dy.cols, {op.x.rows});
}

void Run(const LinearBackwardWeight& op, const Context& context) {
  const KernelSet kernels = KernelsOf(context.isa);
  const int64_t live = LiveRowsOf(op.live_rows, op.x.rows);
  ProductTerm term;
  term.a = AsTransposed(op.dy);
  term.b = AsTransposed(op.x);
  term.a.depth = term.b.depth = live;
  term.round_to_bf16 = op.x.dtype == DType::kBf16;
  Product product;
  product.rows = op.dy.cols;
  product.columns = op.x.cols;
  product.terms = absl::MakeConstSpan(&term, 1);
  product.accumulate = op.accumulate;
  product.c = op.dweight;
  if (op.dweight) RunProduct(product, op.workspace.data, context.pool, kernels);

  if (!op.dbias) return;
  const int64_t columns = op.dy.cols;
  context.pool.Run((columns + kBiasColumns - 1) / kBiasColumns, [&](int64_t task, uint8_t*) {
    const int64_t first = task * kBiasColumns, count = std::min(kBiasColumns, columns - first);
    float row[kBiasColumns], sum[kBiasColumns] = {};
    for (int64_t t = 0; t < live; ++t) {
      const uint8_t* in =
          static_cast<const uint8_t*>(op.dy.data) + (t * op.dy.pitch + first) * SizeOf(op.dy.dtype);
      kernels.f32->widen(in, op.dy.dtype, count, false, row);
      for (int64_t i = 0; i < count; ++i) sum[i] += row[i];
    }
    float* out = op.dbias.Row<float>(0) + first;
    for (int64_t i = 0; i < count; ++i) out[i] = op.accumulate ? out[i] + sum[i] : sum[i];
  });
}

}  // namespace qlora::kernels::cpu
