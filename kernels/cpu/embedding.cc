#include "kernels/ops/embedding.h"

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"

namespace qlora::kernels::cpu {
namespace {

// Columns of a tile of the backward pass, which walks down all rows in order.
constexpr int64_t kBackwardColumns = 128;

}  // namespace

void Run(const EmbeddingForward& op, const Context& context) {
  const int64_t rows = LiveRowCount(op.live_rows, op.y.rows);
  ForRowTiles(context.pool, rows, op.y.cols, [&](int64_t begin, int64_t end) {
    SimdFor(context.isa).embedding_forward(op, begin, end);
  });
}
int64_t WorkspaceBytes(const EmbeddingForward&, Isa) { return 0; }

void Run(const EmbeddingBackward& op, const Context& context) {
  const int64_t rows = LiveRowCount(op.live_rows, op.dy.rows);
  ForTiles(context.pool, op.dy.cols, kBackwardColumns, [&](int64_t begin, int64_t end) {
    SimdFor(context.isa).embedding_backward(op, rows, begin, end);
  });
}
int64_t WorkspaceBytes(const EmbeddingBackward&, Isa) { return 0; }

}  // namespace qlora::kernels::cpu
