#include "kernels/cuda/ops.h"
#include "kernels/ops/quantize.h"

namespace qlora::kernels::cuda {
namespace {

void Copy(const ConstTensor& from, const Tensor& to, const Context& context) {
  if (!from || !to) return;
  context.launcher.Fail(
      gpu::CopyAsync(to.data, from.data, from.Extent(), context.launcher.stream()));
}

// The kernels compute on bitsandbytes' own bytes: rows of codes are contiguous, which both a warp's
// loads along a row and a box of rows for the tensor memory accelerator want.
void CopyParts(const QuantizedTensor& from, const QuantizedOutput& to, const Context& context) {
  Copy(from.codes, to.codes, context);
  Copy(from.absmax, to.absmax, context);
  Copy(from.nested_absmax, to.nested_absmax, context);
  Copy(from.offset, to.offset, context);
}

}  // namespace

void Run(const Pack& op, const Context& context) { CopyParts(op.from, op.to, context); }
void Run(const Unpack& op, const Context& context) { CopyParts(op.from, op.to, context); }

}  // namespace qlora::kernels::cuda
