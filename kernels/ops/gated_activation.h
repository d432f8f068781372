// Gated activation: out = act(gate) · up, with act = SiLU, z·σ(z), or GELU in its tanh form.
// Backward: dgate = dout · up · act'(gate);  dup = dout · act(gate).
//
// Rounding: fp32, rounded once to the output's type. Bound: 8 u(fp32) · |terms| + ½ ulp of the
// output.

#ifndef QLORA_KERNELS_OPS_GATED_ACTIVATION_H_
#define QLORA_KERNELS_OPS_GATED_ACTIVATION_H_

#include "kernels/tensor.h"

namespace qlora::kernels {

enum class Activation : uint8_t { kSilu, kGeluTanh };

struct GatedActivationForward {
  ConstTensor gate, up;  // bf16 or f32 [T, I]
  LiveRows live_rows;
  Activation activation = Activation::kSilu;
  Tensor out;  // same type [T, I]

  static constexpr const char* kName = "gated_activation_forward";
  static void Visit(auto& op, auto&& f) {
    f("gate", op.gate), f("up", op.up), f("live_rows", op.live_rows), f("out", op.out);
  }
};

struct GatedActivationBackward {
  ConstTensor gate, up, dout;  // bf16 or f32 [T, I]
  LiveRows live_rows;
  Activation activation = Activation::kSilu;
  Tensor dgate, dup;  // same type; may be the same memory as gate and up (or dout)

  static constexpr const char* kName = "gated_activation_backward";
  static void Visit(auto& op, auto&& f) {
    f("gate", op.gate), f("up", op.up), f("dout", op.dout), f("live_rows", op.live_rows);
    f("dgate", op.dgate), f("dup", op.dup);
  }
};

inline double Flops(const GatedActivationForward& op) { return 6.0 * op.gate.Count(); }
inline double Bytes(const GatedActivationForward& op) {
  return 3.0 * op.gate.Count() * SizeOf(op.gate.dtype);
}
inline double Flops(const GatedActivationBackward& op) { return 12.0 * op.gate.Count(); }
inline double Bytes(const GatedActivationBackward& op) {
  return 5.0 * op.gate.Count() * SizeOf(op.gate.dtype);
}

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_OPS_GATED_ACTIVATION_H_
