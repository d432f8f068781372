#include "kernels/cpu/gemm.h"

#include "kernels/cpu/product.h"

namespace qlora::kernels::cpu {

KernelSet KernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return {&PortableKernels(), &PortableKernels()};
    case Isa::kAvx2:
      return {&Avx2Kernels(), &Avx2Kernels()};
    case Isa::kAvx512:
      return {&Avx512Kernels(), &Avx512Kernels()};
    case Isa::kAvx512Bf16:
      return {&Avx512Kernels(), &Avx512Bf16Kernels()};
  }
  return {&PortableKernels(), &PortableKernels()};
}

GemmOperand BaseRows(const LinearBase& base) {
  GemmOperand operand;
  operand.rows = base.out_features;
  operand.depth = base.in_features;
  if (base.kind == LinearBase::Kind::kQuantized) {
    operand.quantized = &base.quantized;
  } else {
    operand.dense = base.dense;
  }
  return operand;
}

GemmOperand BaseColumns(const LinearBase& base) {
  GemmOperand operand = BaseRows(base);
  std::swap(operand.rows, operand.depth);
  operand.transposed = true;
  return operand;
}

int64_t GemmWorkspaceBytes(int64_t m, int64_t depth, Isa) {
  return ProductWorkspaceBytes(m, {depth});
}

void Gemm(const GemmProblem& problem, void* workspace, const Context& context) {
  ProductTerm term;
  term.a = problem.a;
  term.b = problem.b;
  term.round_to_bf16 = problem.round_to_bf16;
  Product product;
  product.rows = problem.a.rows;
  product.columns = problem.b.rows;
  product.terms = absl::MakeConstSpan(&term, 1);
  product.alpha = problem.alpha;
  product.accumulate = problem.accumulate;
  product.c = problem.c;
  RunProduct(product, workspace, context.pool, KernelsOf(context.isa));
}

}  // namespace qlora::kernels::cpu
