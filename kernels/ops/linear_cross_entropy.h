// Linear + cross-entropy over the trained rows only, in chunks: full logits are never stored.
//
// For i < count, with t = rows[i] and target c = targets[i]:
//
//   z      = h[t] · Wᵀ;  z = softcap · tanh(z / softcap) where softcap > 0
//   loss_i = log Σ_v exp(z_v) − z_c          fp32 over the vocabulary, fp64 over a segment's rows
//   g_i    = (softmax(z) − onehot(c)) · (1 − (z/softcap)²)
//   dh[t]  = g_i · W                         not divided by any token count
//   dW    += Σ_i g_iᵀ · h[t]                 only where the head is trained
//
// dh rows that are not in `rows` are set to zero. `rows` ascend.
//
// Rounding: z stays fp32; softmax − onehot is rounded to h's type before its product; dh is rounded
// once.

#ifndef QLORA_KERNELS_OPS_LINEAR_CROSS_ENTROPY_H_
#define QLORA_KERNELS_OPS_LINEAR_CROSS_ENTROPY_H_

#include "kernels/ops/linear.h"

namespace qlora::kernels {

struct LinearCrossEntropy {
  ConstTensor h;        // bf16 or f32 [T, K]
  LinearBase head;      // [V, K], dense or quantized
  ConstTensor rows;     // i32 [C, 1], trained rows of h, ascending
  ConstTensor targets;  // i32 [C, 1]
  ConstTensor count;    // i32 scalar ≤ C
  // i32 [S, 2]: the first and the end of each adapter's trained rows, one behind the other; empty:
  // one segment of all.
  ConstTensor segments;
  LiveRows live_rows;      // rows of h that hold data: dh beyond them is untouched
  int64_t chunk_rows = 0;  // trained rows whose logits stand in the workspace at a time
  float softcap = 0.0f;
  bool accumulate_loss = false;
  bool accumulate_dhead = true;
  Tensor loss;      // f64 [S, 1]: Σ_i loss_i of each segment, added where accumulate_loss
  Tensor row_loss;  // f32 [C, 1] or empty
  // i32 [S, 1] or empty: rows whose largest logit is the target's (lowest index wins); added where
  // accumulate_loss.
  Tensor correct;
  Tensor dh;     // h's type [T, K]; empty: forward only
  Tensor dhead;  // f32 [V, K] or empty
  Tensor workspace;

  static constexpr const char* kName = "linear_cross_entropy";
  static void Visit(auto& op, auto&& f) {
    f("h", op.h), LinearBase::Visit(op.head, f), f("rows", op.rows), f("targets", op.targets);
    f("count", op.count), f("segments", op.segments), f("live_rows", op.live_rows);
    f("loss", op.loss);
    f("row_loss", op.row_loss), f("correct", op.correct), f("dh", op.dh), f("dhead", op.dhead);
    f("workspace", op.workspace);
  }
};

inline double Flops(const LinearCrossEntropy& op) {
  const double products = 1.0 + (op.dh ? 1.0 : 0.0) + (op.dhead ? 1.0 : 0.0);
  return products * BaseFlops(op.head, op.rows.rows);
}
inline double Bytes(const LinearCrossEntropy& op) {
  const double chunks = op.chunk_rows > 0 ? double(op.rows.rows) / op.chunk_rows : 1.0;
  return BaseBytes(op.head) * (op.dh ? 2 : 1) * (chunks < 1 ? 1 : chunks) +
         8.0 * op.rows.rows * double(op.head.out_features) +
         2.0 * op.h.Count() * SizeOf(op.h.dtype);
}

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_OPS_LINEAR_CROSS_ENTROPY_H_
