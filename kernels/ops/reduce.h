// Reductions in a fixed order, and the small arithmetic of the update that follows them.
//
// Sums are taken over chunks of kReduceChunk elements, then over the chunk sums in order, all in
// fp64. A chunk has kReduceLanes sums, element i going to sum i mod kReduceLanes, in order; they
// are then halved onto each other: for half = 8, 4, 2, 1, sum[j] += sum[j + half] for j < half.
// Neither threads nor vector lengths change the result.

#ifndef QLORA_KERNELS_OPS_REDUCE_H_
#define QLORA_KERNELS_OPS_REDUCE_H_

#include "kernels/tensor.h"

namespace qlora::kernels {

inline constexpr int64_t kReduceChunk = 16384;
inline constexpr int64_t kReduceLanes = 16;

// sum_of_squares = Σ x²;  nonfinite = how many elements are NaN or infinite (these are left out of
// the sum).
//
// Where x lies on several ranks, in whole chunks, the op runs in halves: without its outputs it
// leaves the chunk sums of an own part, kChunkSumBytes each, in `workspace`; without x it takes
// those of all parts from there. The result has the same bits.
inline constexpr int64_t kChunkSumBytes = 16;

struct NormAndFinite {
  ConstTensor x;          // f32 or bf16 [1, n]
  Tensor sum_of_squares;  // f64 scalar
  Tensor nonfinite;       // i32 scalar, at most 2³¹ − 1
  Tensor workspace;       // u8 [1, chunks · kChunkSumBytes]

  static constexpr const char* kName = "norm_and_finite";
  static void Visit(auto& op, auto&& f) {
    f("x", op.x), f("sum_of_squares", op.sum_of_squares), f("nonfinite", op.nonfinite);
    f("workspace", op.workspace);
  }
};

// A 64-bit hash of the n bytes, equal on every backend: the bytes are cut into chunks of
// kHashChunk; chunk c is hashed with XXH64 under seed c; the result is XXH64, under seed n, of the
// chunk hashes as little-endian 64-bit numbers in order (of nothing, where n = 0). XXH64 as in its
// public specification. It guards against accident, not malice.
inline constexpr int64_t kHashChunk = 1 << 20;

struct ContentHash {
  ConstTensor x;     // any type [1, n], contiguous
  Tensor hash;       // u64 scalar
  Tensor workspace;  // u8 [1, Workspace(op)]

  static constexpr const char* kName = "content_hash";
  static void Visit(auto& op, auto&& f) {
    f("x", op.x), f("hash", op.hash), f("workspace", op.workspace);
  }
};

// into += from: one edge of the balanced tree over micro-batches, for gradients and losses.
struct AddGradient {
  ConstTensor from;  // f32 or f64 [1, n]
  Tensor into;       // from's type [1, n]

  static constexpr const char* kName = "add_gradient";
  static void Visit(auto& op, auto&& f) { f("from", op.from), f("into", op.into); }
};

// Sets every byte to zero.
struct Zero {
  Tensor x;
  static constexpr const char* kName = "zero";
  static void Visit(auto& op, auto&& f) { f("x", op.x); }
};

// gradient_norm = √sum_of_squares · inverse_tokens
// gradient_scale = inverse_tokens · min(1, max_norm / (gradient_norm + 1e-6))   (as torch's
// clip_grad_norm_) skip = 1 where anything was not finite (an element, the norm, or the loss), else
// 0.
struct GradientScale {
  ConstTensor sum_of_squares;  // f64 scalar
  ConstTensor nonfinite;       // i32 scalar
  ConstTensor loss;            // f64 scalar: Σ loss over the batch
  ConstTensor inverse_tokens;  // f32 scalar: 1 / trained tokens of the global batch
  float max_norm = 0.0f;       // 0: no clipping
  Tensor gradient_norm;        // f32 scalar
  Tensor gradient_scale;       // f32 scalar
  Tensor skip;                 // i32 scalar

  static constexpr const char* kName = "gradient_scale";
  static void Visit(auto& op, auto&& f) {
    f("sum_of_squares", op.sum_of_squares), f("nonfinite", op.nonfinite), f("loss", op.loss);
    f("inverse_tokens", op.inverse_tokens), f("gradient_norm", op.gradient_norm);
    f("gradient_scale", op.gradient_scale), f("skip", op.skip);
  }
};

inline double Flops(const NormAndFinite& op) { return 2.0 * op.x.Count(); }
inline double Bytes(const NormAndFinite& op) { return double(op.x.Count()) * SizeOf(op.x.dtype); }
inline double Flops(const ContentHash&) { return 0.0; }
inline double Bytes(const ContentHash& op) { return double(op.x.Count()) * SizeOf(op.x.dtype); }
inline double Flops(const AddGradient& op) { return double(op.into.Count()); }
inline double Bytes(const AddGradient& op) { return 3.0 * op.into.Count() * SizeOf(op.into.dtype); }
inline double Flops(const Zero&) { return 0.0; }
inline double Bytes(const Zero& op) { return double(op.x.Count()) * SizeOf(op.x.dtype); }
inline double Flops(const GradientScale&) { return 8.0; }
inline double Bytes(const GradientScale&) { return 40.0; }

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_OPS_REDUCE_H_
