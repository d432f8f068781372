// The reference of every op: naive, in fp64, written from the formulas of kernels/ops/*.h, with an
// error bound for each element of each output. Inputs are read from the host image and nothing is
// written.
//
// The references round only where a rounding point is part of the formula's meaning (the residual
// sum of RMSNorm, weights that enter as bf16); all other rounding is in the bounds. So on fp32
// operands they are smooth functions that finite differences can be taken of.

#ifndef QLORA_TESTS_SUPPORT_REFERENCE_OPS_H_
#define QLORA_TESTS_SUPPORT_REFERENCE_OPS_H_

#include <string>

#include "kernels/op_list.h"
#include "tests/support/expectation.h"

namespace qlora::kernels::optest {

#define QLORA_DECLARE_REFERENCE(OpType) Expectation Reference(const OpType& op);
QLORA_FOR_EACH_OP(QLORA_DECLARE_REFERENCE)
#undef QLORA_DECLARE_REFERENCE

// The weight as it enters the product, [N, K]: dense or decoded; rounded to bf16 where `compute` is
// that. Zero where the base is absent.
Matrix WeightOf(const LinearBase& base, DType compute);

// Values with the errors they were computed with.
struct Computed {
  Computed(int64_t rows, int64_t cols) : value(rows, cols), error(rows, cols) {}
  explicit Computed(const Matrix& exact) : value(exact), error(exact.rows, exact.cols) {}
  Matrix value, error;
};

// low = (D∘x) · Aᵀ of an adapter over x's first `live` rows, added to `expectation`.
Computed ExpectFirstProduct(const Computed& x, const FirstProduct& product, int64_t live,
                            DType compute, Expectation& expectation);

// What `Reference` leaves open of AdamW's 8-bit states: each code is a nearest one of the updated
// value over the block's new absmax. `after` holds views of the result. Empty where all is well.
std::string CheckCodedStates(const AdamW& before, const AdamW& after);

}  // namespace qlora::kernels::optest

#endif  // QLORA_TESTS_SUPPORT_REFERENCE_OPS_H_
