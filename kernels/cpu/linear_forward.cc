#include <algorithm>

#include "kernels/cpu/linear_gemv.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/product.h"

namespace qlora::kernels::cpu {

int64_t WorkspaceBytes(const LinearForward& op, Isa) {
  if (IsGemv(op)) return GemvWorkspaceBytes(op);
  std::vector<int64_t> depths = {op.base.in_features};
  for (const AdapterSegment& segment : op.adapters) depths.push_back(segment.a.rows);
  return ProductWorkspaceBytes(op.x.rows, depths);
}

void RunLinearForward(const LinearForward& op, ThreadPool& pool, const KernelSet& kernels) {
  const int64_t live = LiveRowsOf(op.live_rows, op.x.rows);
  if (live == 0) return;
  if (IsGemv(op)) return RunGemv(op, live, pool, kernels);
  const bool round = op.x.dtype == DType::kBf16;
  std::vector<ProductTerm> terms;
  terms.reserve(op.adapters.size() + 1);
  if (op.base.kind != LinearBase::Kind::kNone) {
    ProductTerm& term = terms.emplace_back();
    term.a = AsStored(op.x);
    term.a.rows = live;
    term.b = BaseRows(op.base);
    term.round_to_bf16 = round;
  }
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& segment = op.adapters[i];
    const auto [begin, end] = RangeOf(segment.rows, live);
    if (begin == end || segment.a.rows == 0) continue;

    if (!segment.IsLowGiven()) {
      RunFirstProduct(op.x, FirstProductOf(op, i), live, op.workspace.data, pool, kernels);
    }
    ProductTerm& up = terms.emplace_back();
    up.a = AsStored(RowsOf(LowOf(op, i), {begin, end}));
    up.b = AsStored(segment.b);
    up.round_to_bf16 = round;
    up.scale = segment.scale;
    up.begin = begin;
    up.end = end;
  }
  Product product;
  product.rows = live;
  product.columns = op.base.out_features;
  product.terms = terms;
  product.bias = op.bias;
  product.c = op.y;
  RunProduct(product, op.workspace.data, pool, kernels);
}

void Run(const LinearForward& op, const Context& context) {
  RunLinearForward(op, context.pool, KernelsOf(context.isa));
}

}  // namespace qlora::kernels::cpu
