#include "kernels/ops/gated_activation.h"

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"

namespace qlora::kernels::cpu {

void Run(const GatedActivationForward& op, const Context& context) {
  const int64_t rows = LiveRowCount(op.live_rows, op.out.rows);
  ForRowTiles(context.pool, rows, op.out.cols, [&](int64_t begin, int64_t end) {
    SimdFor(context.isa).gated_forward(op, begin, end);
  });
}
int64_t WorkspaceBytes(const GatedActivationForward&, Isa) { return 0; }

void Run(const GatedActivationBackward& op, const Context& context) {
  const int64_t rows = LiveRowCount(op.live_rows, op.dgate.rows);
  ForRowTiles(context.pool, rows, op.dgate.cols, [&](int64_t begin, int64_t end) {
    SimdFor(context.isa).gated_backward(op, begin, end);
  });
}
int64_t WorkspaceBytes(const GatedActivationBackward&, Isa) { return 0; }

}  // namespace qlora::kernels::cpu
