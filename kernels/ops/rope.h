// Rotary position embedding in halves: for each head, with c = cos[pos], s = sin[pos] and half =
// rotary/2,
//   y[i]        = x[i] · c[i] − x[i + half] · s[i]
//   y[i + half] = x[i + half] · c[i] + x[i] · s[i]          for i < half
// and y = x behind the rotary dimensions. `inverse` negates s, which is the backward pass.
//
// Rounding: fp32, rounded once to y's type. Bound: 3 u(fp32) · (|x_i| + |x_{i+half}|) + ½ ulp of y.

#ifndef QLORA_KERNELS_OPS_ROPE_H_
#define QLORA_KERNELS_OPS_ROPE_H_

#include "kernels/tensor.h"

namespace qlora::kernels {

struct Rope {
  ConstTensor x;          // bf16 or f32 [T, heads · head_size]
  ConstTensor positions;  // i32 [T, 1], each in [0, P)
  ConstTensor cos, sin;   // f32 [P, rotary/2]; any attention factor is already multiplied in
  LiveRows live_rows;
  int64_t head_size = 0;  // ≥ rotary
  bool inverse = false;
  Tensor y;  // x's type; may be the same memory as x

  static constexpr const char* kName = "rope";
  static void Visit(auto& op, auto&& f) {
    f("x", op.x), f("positions", op.positions), f("cos", op.cos), f("sin", op.sin);
    f("live_rows", op.live_rows), f("y", op.y);
  }
};

inline double Flops(const Rope& op) { return 3.0 * op.x.Count(); }
inline double Bytes(const Rope& op) {
  return 2.0 * op.x.Count() * SizeOf(op.x.dtype) + op.x.rows * (4.0 + 8.0 * op.cos.cols);
}

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_OPS_ROPE_H_
