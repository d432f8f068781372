#include "kernels/cpu/ops.h"
#include "kernels/cpu/product.h"

namespace qlora::kernels::cpu {

int64_t WorkspaceBytes(const LinearBackwardInput& op, Isa) {
  std::vector<int64_t> depths = {op.base.out_features};
  for (const AdapterSegment& segment : op.adapters) depths.push_back(segment.a.rows);
  return ProductWorkspaceBytes(op.dy.rows, depths);
}

void Run(const LinearBackwardInput& op, const Context& context) {
  const KernelSet kernels = KernelsOf(context.isa);
  const int64_t live = LiveRowsOf(op.live_rows, op.dy.rows);
  if (live == 0) return;
  const bool round = op.dy.dtype == DType::kBf16;
  std::vector<ProductTerm> terms;
  std::vector<DropoutView> drops;
  terms.reserve(op.adapters.size() + 1);
  drops.reserve(op.adapters.size());
  if (op.base.kind != LinearBase::Kind::kNone) {
    ProductTerm& term = terms.emplace_back();
    term.a = AsStored(op.dy);
    term.a.rows = live;
    term.b = BaseColumns(op.base);
    term.round_to_bf16 = round;
  }
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& segment = op.adapters[i];
    const auto [begin, end] = RangeOf(segment.rows, live);
    if (begin == end || segment.a.rows == 0) continue;

    ProductTerm down;
    down.a = AsStored(RowsOf(op.dy, {begin, end}));
    down.b = AsTransposed(segment.b);
    down.round_to_bf16 = round;
    Product up;
    up.rows = end - begin;
    up.columns = segment.a.rows;
    up.terms = absl::MakeConstSpan(&down, 1);
    up.alpha = segment.scale;
    up.c = SliceRows(op.up[i], begin, end - begin);
    RunProduct(up, op.workspace.data, context.pool, kernels);

    ProductTerm& term = terms.emplace_back();
    term.a = AsStored(up.c);
    term.b = AsTransposed(segment.a);
    term.round_to_bf16 = round;
    term.begin = begin;
    term.end = end;
    if (segment.dropout.probability > 0) {
      term.drop_sum =
          &drops.emplace_back(DropoutView{ArgsOf(segment.dropout), op.base.in_features});
      term.kept_scale = KeptScale(segment.dropout.probability);
    }
  }
  if (!op.dx) return;
  Product product;
  product.rows = live;
  product.columns = op.base.in_features;
  product.terms = terms;
  product.accumulate = op.accumulate;
  product.c = op.dx;
  RunProduct(product, op.workspace.data, context.pool, kernels);
}

}  // namespace qlora::kernels::cpu
