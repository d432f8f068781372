// AdamW over a range of the flat parameter space (decoupled weight decay, Loshchilov & Hutter).
//
// The space is cut into 256-element blocks; `segments` gives each block its learning-rate factor
// and decay.
//   g = gradient · gradient_scale            (gradients are unnormalised sums)
//   p = p · (1 − lr · decay)
//   m = β1·m + (1 − β1)·g;   v = β2·v + (1 − β2)·g²
//   p = p − lr / (1 − β1^t) · m / (√v / √(1 − β2^t) + ε)
// fp32 throughout; `compute` receives p rounded to its type: what forward reads. Where `skip` is
// not zero nothing is changed: the step's gradients were not finite.
//
// 8-bit states keep m in the signed and v in the unsigned dynamic map, one f32 absmax per
// 256-element block. A block is decoded, updated in fp32 and encoded: code of value / absmax,
// absmax being the new largest magnitude (an all-zero block stores absmax 0 and the codes of 0).
// Codes are those of quant::EncodeDynamic. The scalars lr · decay, lr / (1 − β1^t), 1 − β and √(1 −
// β2^t) are formed in fp64 and rounded to fp32 once.
//
// States may lie in windows one behind the other, with other things between them: a row a window.
// Element i of the range is that of row i / cols, column i % cols; the last row may be filled in
// part, and what is behind the range is not touched.

#ifndef QLORA_KERNELS_OPS_ADAMW_H_
#define QLORA_KERNELS_OPS_ADAMW_H_

#include "kernels/tensor.h"

namespace qlora::kernels {

inline constexpr int64_t kParameterBlock = 256;

// One row of the segment table, as stored: blocks [first_block, the next row's first_block) share
// it.
struct ParameterSegment {
  int32_t first_block;
  float rate_factor;  // multiplies the learning rate
  float weight_decay;
  int32_t adapter;  // which adapter's scalars it uses
};

// Per-step scalars of one adapter, as they lie in the step's inputs: f32 [adapters, kCount].
struct UpdateScalars {
  enum : int { kLearningRate, kBiasCorrection1, kBiasCorrection2, kCount };
  // kBiasCorrection1 = 1 − β1^t, kBiasCorrection2 = 1 − β2^t
};

struct AdamW {
  ConstTensor gradient;        // f32 [1, n]
  ConstTensor segments;        // u8 [S, sizeof(ParameterSegment)]
  ConstTensor scalars;         // f32 [adapters, UpdateScalars::kCount]
  ConstTensor gradient_scale;  // f32 [adapters, 1]: 1/trained tokens · clip factor
  ConstTensor skip;            // i32 scalar
  // Doubles, because 1 − β is formed from them and then rounded: 1 − 0.999f is 1.3e-5 off 0.001.
  double beta1 = 0.9, beta2 = 0.999;
  float epsilon = 1e-8f;
  int64_t first_block = 0;    // of the flat space: the views below begin there
  Tensor parameter;           // f32 [1, n] or [R, C]: the master
  Tensor m, v;                // f32 or u8, [R, C]; C is a multiple of kParameterBlock where R > 1
  Tensor m_absmax, v_absmax;  // f32 [R, blocks of C]; empty with f32 states
  Tensor compute;             // bf16 [1, n], or empty where forward reads the master

  static constexpr const char* kName = "adamw";
  static void Visit(auto& op, auto&& f) {
    f("gradient", op.gradient), f("segments", op.segments), f("scalars", op.scalars);
    f("gradient_scale", op.gradient_scale), f("skip", op.skip), f("parameter", op.parameter);
    f("m", op.m), f("v", op.v), f("m_absmax", op.m_absmax), f("v_absmax", op.v_absmax);
    f("compute", op.compute);
  }
};

inline double Flops(const AdamW& op) { return 14.0 * op.gradient.Count(); }
inline double Bytes(const AdamW& op) {
  const double states = op.m.dtype == DType::kU8 ? 4.0 : 16.0;
  return op.gradient.Count() * (4.0 + 8.0 + states + (op.compute ? 2.0 : 0.0));
}

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_OPS_ADAMW_H_
