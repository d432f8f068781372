// RMSNorm, with the residual addition that comes before it.
//
//   s    = x + residual                       rounded to sum's type; x where there is no residual
//   rstd = 1 / sqrt(mean(s²) + eps)           fp32
//   y    = s · rstd · (weight_offset + w)     in fp32, rounded once to y's type
//   low  = (D∘y) · Aᵀ                         of each of `products`, from the rounded y
//
// Backward, with g = dy · (weight_offset + w) and x̂ = s · rstd:
//
//   ds   = rstd · (g − x̂ · mean(g · x̂)) + dresidual
//   dw  += Σ_t dy · x̂                         only where w is trained; rows in fixed order
//
// weight_offset is 1 for the Gemma families and 0 elsewhere. Norms over heads pass rows = T ·
// heads. Bound: the sum over a row of H terms is good to H·u(fp32) relative to Σ|terms|; then ½ ulp
// of the output. `low` as in linear.h. `products` change no byte of the other outputs.

#ifndef QLORA_KERNELS_OPS_RMS_NORM_H_
#define QLORA_KERNELS_OPS_RMS_NORM_H_

#include <vector>

#include "kernels/ops/linear.h"

namespace qlora::kernels {

struct RmsNormForward {
  ConstTensor x;         // bf16 or f32 [R, H]
  ConstTensor residual;  // same, or empty
  ConstTensor weight;    // bf16, f16 or f32 [1, H]
  LiveRows live_rows;    // counts tokens; each token has rows_per_token rows
  int64_t rows_per_token = 1;
  float epsilon = 1e-5f;
  float weight_offset = 0.0f;
  Tensor sum;   // x's type [R, H]; written only where residual is given, else empty
  Tensor y;     // x's type [R, H]
  Tensor rstd;  // f32 [R, 1]
  // Of adapters that read y, which this op makes while it has the rows at hand; only where
  // rows_per_token is 1. A device says what it pays for: Device::FirstProductRank.
  std::vector<FirstProduct> products;
  Tensor workspace;

  static constexpr const char* kName = "rms_norm_forward";
  static void Visit(auto& op, auto&& f) {
    f("x", op.x), f("residual", op.residual), f("weight", op.weight), f("live_rows", op.live_rows);
    f("sum", op.sum), f("y", op.y), f("rstd", op.rstd);
    for (auto& product : op.products) FirstProduct::Visit(product, f);
    f("workspace", op.workspace);
  }
};

struct RmsNormBackward {
  ConstTensor dy;         // bf16 or f32 [R, H]
  ConstTensor x;          // what was normalised (`sum` where there was a residual)
  ConstTensor weight;     // [1, H]
  ConstTensor rstd;       // f32 [R, 1]
  ConstTensor dresidual;  // dy's type [R, H] or empty: the gradient that reaches s past the norm
  LiveRows live_rows;
  int64_t rows_per_token = 1;
  float weight_offset = 0.0f;
  Tensor dx;       // dy's type [R, H]; may be the same memory as dy or dresidual
  Tensor dweight;  // f32 [1, H], added to; or empty

  static constexpr const char* kName = "rms_norm_backward";
  static void Visit(auto& op, auto&& f) {
    f("dy", op.dy), f("x", op.x), f("weight", op.weight), f("rstd", op.rstd);
    f("dresidual", op.dresidual), f("live_rows", op.live_rows), f("dx", op.dx),
        f("dweight", op.dweight);
  }
};

inline double Flops(const RmsNormForward& op) {
  double flops = 6.0 * op.x.Count();
  for (const FirstProduct& p : op.products) flops += 2.0 * op.x.Count() * p.a.rows;
  return flops;
}
inline double Bytes(const RmsNormForward& op) {
  const double tensors = 2.0 + (op.residual ? 2.0 : 0.0);
  double elements = tensors * op.x.Count();
  for (const FirstProduct& p : op.products) elements += double(p.a.Count() + p.low.Count());
  return elements * SizeOf(op.x.dtype) + 4.0 * op.x.rows;
}
inline double Flops(const RmsNormBackward& op) { return (op.dweight ? 13.0 : 10.0) * op.x.Count(); }
inline double Bytes(const RmsNormBackward& op) {
  const double tensors = 3.0 + (op.dresidual ? 1.0 : 0.0);
  return tensors * op.x.Count() * SizeOf(op.x.dtype) + 4.0 * op.x.rows;
}

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_OPS_RMS_NORM_H_
