// Embedding: y[t] = scale · table[ids[t]].
// Backward (only where the table is trained): dtable[ids[t]] += scale · dy[t], rows added in the
// order of t.
//
// Rounding: the product in fp32, rounded once to y's type. Bound: ½ ulp of y; the gradient's is
// depth × ulp(fp32).

#ifndef QLORA_KERNELS_OPS_EMBEDDING_H_
#define QLORA_KERNELS_OPS_EMBEDDING_H_

#include "kernels/tensor.h"

namespace qlora::kernels {

struct EmbeddingForward {
  ConstTensor ids;    // i32 [T, 1], each in [0, V)
  ConstTensor table;  // bf16, f16 or f32 [V, H]
  LiveRows live_rows;
  float scale = 1.0f;
  Tensor y;  // bf16 or f32 [T, H]

  static constexpr const char* kName = "embedding_forward";
  static void Visit(auto& op, auto&& f) {
    f("ids", op.ids), f("table", op.table), f("live_rows", op.live_rows), f("y", op.y);
  }
};

struct EmbeddingBackward {
  ConstTensor ids;  // i32 [T, 1]
  ConstTensor dy;   // bf16 or f32 [T, H]
  LiveRows live_rows;
  float scale = 1.0f;
  Tensor dtable;  // f32 [V, H], added to

  static constexpr const char* kName = "embedding_backward";
  static void Visit(auto& op, auto&& f) {
    f("ids", op.ids), f("dy", op.dy), f("live_rows", op.live_rows), f("dtable", op.dtable);
  }
};

inline double Flops(const EmbeddingForward& op) { return double(op.y.Count()); }
inline double Bytes(const EmbeddingForward& op) {
  return double(op.y.Count()) * (SizeOf(op.table.dtype) + SizeOf(op.y.dtype)) + 4.0 * op.y.rows;
}
inline double Flops(const EmbeddingBackward& op) { return 2.0 * op.dy.Count(); }
inline double Bytes(const EmbeddingBackward& op) {
  return double(op.dy.Count()) * (SizeOf(op.dy.dtype) + 8) + 4.0 * op.dy.rows;
}

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_OPS_EMBEDDING_H_
