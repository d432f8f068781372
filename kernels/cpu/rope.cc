#include "kernels/ops/rope.h"

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"

namespace qlora::kernels::cpu {

void Run(const Rope& op, const Context& context) {
  const int64_t rows = LiveRowCount(op.live_rows, op.x.rows);
  ForRowTiles(context.pool, rows, op.x.cols,
              [&](int64_t begin, int64_t end) { SimdFor(context.isa).rope(op, begin, end); });
}
int64_t WorkspaceBytes(const Rope&, Isa) { return 0; }

}  // namespace qlora::kernels::cpu
