// Causal grouped-query attention over packed documents.
//
// `documents` lists, for each document d, four int32: first query row, query rows, first key row,
// key rows. Query i of a document stands at key position i + (key rows − query rows): with a cache
// the queries are the last ones. Key j is visible to a query at position p iff p − window < j ≤ p
// (window 0: no lower limit). Query head h reads key/value head h / (query_heads / kv_heads).
//
//   z = scale · q·kᵀ;  z = softcap · tanh(z / softcap) where softcap > 0
//   lse = log Σ_j exp(z_j);  o = Σ_j exp(z_j − lse) · v_j
// Backward, with p = exp(z − lse) and D = Σ do·o:
//   dv += pᵀ do;  dz = p · (do·vᵀ − D) · (1 − (z/softcap)²);  dq = scale · dz k;  dk = scale · dzᵀ
//   q
//
// Rounding: products accumulate in fp32; p and dz are rounded to q's type before their second
// product (no rounding where that is f32). Sums run in a fixed order: the result depends on nothing
// but the inputs.

#ifndef QLORA_KERNELS_OPS_ATTENTION_H_
#define QLORA_KERNELS_OPS_ATTENTION_H_

#include <algorithm>

#include "kernels/tensor.h"

namespace qlora::kernels {

// Who computes it. kLibrary: the vendor's library, where query i and key i of a document stand at
// the same position; what it cannot do Device::Accept says.
enum class AttentionKernel : uint8_t { kOwn, kLibrary };

struct AttentionShape {
  int64_t query_heads = 0;
  int64_t kv_heads = 0;  // divides query_heads
  int64_t head_size = 0;
  float scale = 0.0f;
  float softcap = 0.0f;  // 0: none
  int64_t window = 0;    // 0: none
  int64_t longest = 0;   // no document has more keys, for Flops() only; 0: not known
  AttentionKernel kernel = AttentionKernel::kOwn;
};

struct AttentionForward {
  ConstTensor q;               // bf16 or f32 [Tq, query_heads · head_size]
  ConstTensor k, v;            // same type [Tk, kv_heads · head_size]
  ConstTensor documents;       // i32 [D, 4]
  ConstTensor document_count;  // i32 scalar ≤ D
  AttentionShape shape;
  Tensor o;          // q's type and shape
  Tensor lse;        // f32 [Tq, query_heads]
  Tensor workspace;  // u8 [1, AttentionWorkspace()] or empty

  static constexpr const char* kName = "attention_forward";
  static void Visit(auto& op, auto&& f) {
    f("q", op.q), f("k", op.k), f("v", op.v), f("documents", op.documents);
    f("document_count", op.document_count), f("o", op.o), f("lse", op.lse);
    f("workspace", op.workspace);
  }
};

struct AttentionBackward {
  ConstTensor q, k, v, o, dout;  // as in forward; dout is o's gradient
  ConstTensor lse;               // f32 [Tq, query_heads]
  ConstTensor documents;         // i32 [D, 4]
  ConstTensor document_count;    // i32 scalar
  AttentionShape shape;
  Tensor dq, dk, dv;  // q's type, shapes of q, k, v; rows of no document are untouched
  Tensor workspace;   // u8 or empty

  static constexpr const char* kName = "attention_backward";
  static void Visit(auto& op, auto&& f) {
    f("q", op.q), f("k", op.k), f("v", op.v), f("o", op.o), f("dout", op.dout), f("lse", op.lse);
    f("documents", op.documents), f("document_count", op.document_count), f("dq", op.dq);
    f("dk", op.dk), f("dv", op.dv), f("workspace", op.workspace);
  }
};

// Copies new keys or values behind those a cache already holds: row i of document d goes to row
// first_key_row + key_rows − query_rows + i of the cache.
struct KvAppend {
  ConstTensor x;               // [Tq, kv_heads · head_size]
  ConstTensor documents;       // i32 [D, 4], as above
  ConstTensor document_count;  // i32 scalar
  Tensor cache;                // x's type [rows, kv_heads · head_size]

  static constexpr const char* kName = "kv_append";
  static void Visit(auto& op, auto&& f) {
    f("x", op.x), f("documents", op.documents), f("document_count", op.document_count);
    f("cache", op.cache);
  }
};

// Keys of a document as long as may be, each of which half of its queries see; in a window as many
// queries as without one would see twice the window.
inline double MostKeys(const ConstTensor& k, const AttentionShape& shape) {
  int64_t keys = k.rows;
  if (shape.longest > 0) keys = std::min(keys, shape.longest);
  if (shape.window > 0) keys = std::min(keys, 2 * shape.window);
  return double(keys);
}

// The upper limits of work and traffic: documents as long as may be, up to the capacity, causal.
inline double Flops(const AttentionForward& op) {
  return 2.0 * op.q.Count() * MostKeys(op.k, op.shape);
}
inline double Flops(const AttentionBackward& op) {
  return 5.0 * op.q.Count() * MostKeys(op.k, op.shape);
}
inline double Flops(const KvAppend&) { return 0.0; }
inline double Bytes(const AttentionForward& op) {
  return double(2 * op.q.Count() + 2 * op.k.Count()) * SizeOf(op.q.dtype) + 4.0 * op.lse.Count();
}
inline double Bytes(const AttentionBackward& op) {
  return double(4 * op.q.Count() + 4 * op.k.Count()) * SizeOf(op.q.dtype) + 4.0 * op.lse.Count();
}
inline double Bytes(const KvAppend& op) { return 2.0 * op.x.Count() * SizeOf(op.x.dtype); }

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_OPS_ATTENTION_H_
