#include <algorithm>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/product.h"

namespace qlora::kernels::cpu {

int64_t WorkspaceBytes(const LinearBackwardAdapter& op, Isa) {
  const int64_t rows = std::max(op.low.cols, op.dy.cols);
  return ProductWorkspaceBytes(rows, {op.x.rows});
}

void Run(const LinearBackwardAdapter& op, const Context& context) {
  const KernelSet kernels = KernelsOf(context.isa);
  const auto [begin, end] = RangeOf(op.rows, LiveRowsOf(op.live_rows, op.x.rows));
  const bool round = op.x.dtype == DType::kBf16;
  const auto Part = [range = RowRange{begin, end}](const ConstTensor& t) {
    return AsTransposed(RowsOf(t, range));
  };
  ProductTerm term;
  term.round_to_bf16 = round;
  Product product;
  product.terms = absl::MakeConstSpan(&term, 1);
  product.accumulate = op.accumulate;
  DropoutView drop;
  if (op.da) {
    term.a = Part(op.up);
    term.b = Part(op.x);
    if (op.dropout.probability > 0) {
      drop = {ArgsOf(op.dropout), op.x.cols};
      term.drop_b = &drop;
      product.alpha = KeptScale(op.dropout.probability);
    }
    product.rows = op.up.cols;
    product.columns = op.x.cols;
    product.c = op.da;
    RunProduct(product, op.workspace.data, context.pool, kernels);
  }
  if (op.db) {
    term.a = Part(op.dy);
    term.b = Part(op.low);
    term.drop_b = nullptr;
    product.alpha = op.scale;
    product.rows = op.dy.cols;
    product.columns = op.low.cols;
    product.c = op.db;
    RunProduct(product, op.workspace.data, context.pool, kernels);
  }
}

}  // namespace qlora::kernels::cpu
