#include <cmath>

#include "kernels/cuda/attention_f32.h"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/warp.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kMaxPerLane = 8;  // 256 / 32: elements of a head that a lane holds

// Lane l holds elements l, l + 32, ... of a head.
struct HeadVector {
  float x[kMaxPerLane];
};
QLORA_DEVICE HeadVector LoadHead(const ConstTensor& t, int64_t row, int64_t column, int size) {
  HeadVector v;
  QLORA_UNROLL
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int c = i * 32 + gpu::Lane();
    v.x[i] = c < size ? RowOf<float>(t, row)[column + c] : 0.0f;
  }
  return v;
}
QLORA_DEVICE void StoreHead(const Tensor& t, int64_t row, int64_t column, int size,
                            const HeadVector& v, float scale) {
  QLORA_UNROLL
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int c = i * 32 + gpu::Lane();
    if (c < size) RowOf<float>(t, row)[column + c] = v.x[i] * scale;
  }
}
QLORA_DEVICE float Dot(const HeadVector& a, const HeadVector& b) {
  float sum = 0.0f;
  QLORA_UNROLL
  for (int i = 0; i < kMaxPerLane; ++i) sum = fmaf(a.x[i], b.x[i], sum);
  return WarpSum(sum);
}
// into = into · keep + factor · v.
QLORA_DEVICE void Add(HeadVector& into, float keep, float factor, const HeadVector& v) {
  QLORA_UNROLL
  for (int i = 0; i < kMaxPerLane; ++i) into.x[i] = fmaf(factor, v.x[i], into.x[i] * keep);
}

struct Columns {
  int size;
  int64_t query, key;  // where the heads of a block begin
};
QLORA_DEVICE Columns ColumnsOf(const AttentionShape& s, int64_t query_head) {
  const int64_t group = s.query_heads / s.kv_heads;
  return {int(s.head_size), query_head * s.head_size, query_head / group * s.head_size};
}

struct ForwardViews {
  ConstTensor q, k, v;
  Tensor o, lse;
  AttentionShape shape;
  DocumentTable table;
};

// One warp a query and head: softmax online, key after key.
QLORA_KERNEL void ForwardF32(ForwardViews a) {
  const DocumentTile tile = FindTile(a.table, gpu::BlockX(), kWarps, false);
  const int query = tile.first + gpu::Warp();
  if (!tile.exists || query >= tile.document.queries) return;
  const int64_t head = gpu::BlockY(), row = tile.document.first_query + query;
  const Columns at = ColumnsOf(a.shape, head);
  const Visibility visibility = VisibilityOf(tile.document, a.shape.window);
  const HeadVector q = LoadHead(a.q, row, at.query, at.size);
  HeadVector o = {};
  float largest = -INFINITY, sum = 0.0f;
  for (int key = visibility.FirstKey(query); key < visibility.EndKey(query); ++key) {
    const int64_t key_row = tile.document.first_key + key;
    const float z = Logit(a.shape, Dot(q, LoadHead(a.k, key_row, at.key, at.size)));
    const float new_largest = fmaxf(largest, z);
    const float keep = expf(largest - new_largest), p = expf(z - new_largest);
    Add(o, keep, p, LoadHead(a.v, key_row, at.key, at.size));
    sum = sum * keep + p;
    largest = new_largest;
  }
  StoreHead(a.o, row, at.query, at.size, o, 1.0f / sum);
  if (gpu::Lane() == 0) RowOf<float>(a.lse, row)[head] = largest + logf(sum);
}

struct BackwardViews {
  ConstTensor q, k, v, dout, lse;
  const float* delta;
  Tensor dq, dk, dv;
  AttentionShape shape;
  DocumentTable table;
};

// p and dz of one pair.
struct Pair {
  float p, dz;
};
QLORA_DEVICE Pair PairOf(const BackwardViews& a, int64_t query_row, int64_t head,
                         const HeadVector& q, const HeadVector& dout, const HeadVector& k,
                         const HeadVector& v) {
  const float z = Logit(a.shape, Dot(q, k));
  const float p = expf(z - RowOf<float>(a.lse, query_row)[head]);
  const float delta = a.delta[query_row * a.shape.query_heads + head];
  return {p, p * (Dot(dout, v) - delta) * LogitSlope(a.shape, z)};
}

QLORA_KERNEL void BackwardQueriesF32(BackwardViews a) {
  const DocumentTile tile = FindTile(a.table, gpu::BlockX(), kWarps, false);
  const int query = tile.first + gpu::Warp();
  if (!tile.exists || query >= tile.document.queries) return;
  const int64_t head = gpu::BlockY(), row = tile.document.first_query + query;
  const Columns at = ColumnsOf(a.shape, head);
  const Visibility visibility = VisibilityOf(tile.document, a.shape.window);
  const HeadVector q = LoadHead(a.q, row, at.query, at.size);
  const HeadVector dout = LoadHead(a.dout, row, at.query, at.size);
  HeadVector dq = {};
  for (int key = visibility.FirstKey(query); key < visibility.EndKey(query); ++key) {
    const int64_t key_row = tile.document.first_key + key;
    const HeadVector k = LoadHead(a.k, key_row, at.key, at.size);
    const HeadVector v = LoadHead(a.v, key_row, at.key, at.size);
    Add(dq, 1.0f, PairOf(a, row, head, q, dout, k, v).dz, k);
  }
  StoreHead(a.dq, row, at.query, at.size, dq, a.shape.scale);
}

// One warp a key and kv head: the query heads of its group one after another.
QLORA_KERNEL void BackwardKeysF32(BackwardViews a) {
  const DocumentTile tile = FindTile(a.table, gpu::BlockX(), kWarps, true);
  const int key = tile.first + gpu::Warp();
  if (!tile.exists || key >= tile.document.keys) return;
  const int64_t group = a.shape.query_heads / a.shape.kv_heads;
  const int64_t row = tile.document.first_key + key;
  const int size = int(a.shape.head_size);
  const int64_t column = gpu::BlockY() * size;
  const Visibility visibility = VisibilityOf(tile.document, a.shape.window);
  const HeadVector k = LoadHead(a.k, row, column, size), v = LoadHead(a.v, row, column, size);
  HeadVector dk = {}, dv = {};
  for (int64_t head = gpu::BlockY() * group; head < (gpu::BlockY() + 1) * group; ++head) {
    for (int query = visibility.FirstQuery(key); query < visibility.EndQuery(key); ++query) {
      const int64_t query_row = tile.document.first_query + query;
      const HeadVector q = LoadHead(a.q, query_row, head * size, size);
      const HeadVector dout = LoadHead(a.dout, query_row, head * size, size);
      const Pair pair = PairOf(a, query_row, head, q, dout, k, v);
      Add(dv, 1.0f, pair.p, dout);
      Add(dk, 1.0f, pair.dz, q);
    }
  }
  StoreHead(a.dk, row, column, size, dk, a.shape.scale);
  StoreHead(a.dv, row, column, size, dv, 1.0f);
}

}  // namespace

void RunAttentionF32(const AttentionForward& op, const Context& context) {
  const ForwardViews a = {
      op.q, op.k, op.v, op.o, op.lse, op.shape, TableOf(op.documents, op.document_count)};
  gpu::Launch(context.launcher, AttentionForward::kName, &ForwardF32,
              {.blocks_x = TileCapacity(op.q.rows, op.documents, kWarps),
               .blocks_y = op.shape.query_heads,
               .threads = kThreads},
              a);
}

void RunAttentionF32(const AttentionBackward& op, const float* delta, const Context& context) {
  const BackwardViews a = {op.q,
                           op.k,
                           op.v,
                           op.dout,
                           op.lse,
                           delta,
                           op.dq,
                           op.dk,
                           op.dv,
                           op.shape,
                           TableOf(op.documents, op.document_count)};
  gpu::Launch(context.launcher, AttentionBackward::kName, &BackwardQueriesF32,
              {.blocks_x = TileCapacity(op.q.rows, op.documents, kWarps),
               .blocks_y = op.shape.query_heads,
               .threads = kThreads},
              a);
  gpu::Launch(context.launcher, AttentionBackward::kName, &BackwardKeysF32,
              {.blocks_x = TileCapacity(op.k.rows, op.documents, kWarps),
               .blocks_y = op.shape.kv_heads,
               .threads = kThreads},
              a);
}

}  // namespace qlora::kernels::cuda
