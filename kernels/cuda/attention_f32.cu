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
QLORA_DEVICE void StoreHead(const Tensor& t, int64_t row, int64_t column, int size,
                            const HeadVector& v, float scale) {
  QLORA_UNROLL
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int c = i * 32 + gpu::Lane();
    if (c < size) RowOf<float>(t, row)[column + c] = v.x[i] * scale;
  }
}
// into = into · keep + factor · (elements of a row).
QLORA_DEVICE void Add(HeadVector& into, float keep, float factor, const float* row, int size) {
  QLORA_UNROLL
  for (int i = 0; i < kMaxPerLane; ++i) {
    const int c = i * 32 + gpu::Lane();
    if (c < size) into.x[i] = fmaf(factor, row[c], into.x[i] * keep);
  }
}
// By one lane alone.
QLORA_DEVICE float Dot(const float* a, const float* b, int size) {
  float sum = 0.0f;
  for (int c = 0; c < size; ++c) sum = fmaf(a[c], b[c], sum);
  return sum;
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

// One warp a query and head. Of 32 keys each lane takes one for its logit; then the lanes share out
// the head's elements. Softmax online, tile after tile of keys.
QLORA_KERNEL void ForwardF32(ForwardViews a) {
  gpu::SharedMemory memory;
  gpu::Shared<float> weights = memory.Take<float>(kThreads) + gpu::Warp() * 32;
  const DocumentTile tile = FindTile(a.table, gpu::BlockX(), kWarps, false);
  const int query = tile.first + gpu::Warp();
  if (!tile.exists || query >= tile.document.queries) return;
  const int64_t head = gpu::BlockY(), row = tile.document.first_query + query;
  const Columns at = ColumnsOf(a.shape, head);
  const Visibility visibility = VisibilityOf(tile.document, a.shape.window);
  const float* q = RowOf<float>(a.q, row) + at.query;
  HeadVector o = {};
  float largest = -INFINITY, sum = 0.0f;
  const int end = visibility.EndKey(query);
  for (int key0 = visibility.FirstKey(query); key0 < end; key0 += 32) {
    const int count = end - key0 < 32 ? end - key0 : 32;
    const int64_t key_row = tile.document.first_key + key0;
    float z = -INFINITY;
    if (gpu::Lane() < count) {
      z = Logit(a.shape, Dot(q, RowOf<float>(a.k, key_row + gpu::Lane()) + at.key, at.size));
    }
    const float now = fmaxf(largest, WarpMax(z)), keep = expf(largest - now), p = expf(z - now);
    sum = sum * keep + WarpSum(p);
    largest = now;
    weights[gpu::Lane()] = p;
    gpu::SyncWarp();
    for (int j = 0; j < count; ++j) {
      const float weight = weights[j];
      Add(o, j == 0 ? keep : 1.0f, weight, RowOf<float>(a.v, key_row + j) + at.key, at.size);
    }
    gpu::SyncWarp();
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

// p and dz of one pair, by one lane alone.
struct Pair {
  float p, dz;
};
QLORA_DEVICE Pair PairOf(const BackwardViews& a, int64_t query_row, int64_t head, int64_t key_row,
                         const Columns& at) {
  const float* q = RowOf<float>(a.q, query_row) + at.query;
  const float* dout = RowOf<float>(a.dout, query_row) + at.query;
  const float z = Logit(a.shape, Dot(q, RowOf<float>(a.k, key_row) + at.key, at.size));
  const float p = expf(z - RowOf<float>(a.lse, query_row)[head]);
  const float dp = Dot(dout, RowOf<float>(a.v, key_row) + at.key, at.size);
  const float delta = a.delta[query_row * a.shape.query_heads + head];
  return {p, p * (dp - delta) * LogitSlope(a.shape, z)};
}

// One warp a query and head, 32 keys at a time.
QLORA_KERNEL void BackwardQueriesF32(BackwardViews a) {
  gpu::SharedMemory memory;
  gpu::Shared<float> weights = memory.Take<float>(kThreads) + gpu::Warp() * 32;
  const DocumentTile tile = FindTile(a.table, gpu::BlockX(), kWarps, false);
  const int query = tile.first + gpu::Warp();
  if (!tile.exists || query >= tile.document.queries) return;
  const int64_t head = gpu::BlockY(), row = tile.document.first_query + query;
  const Columns at = ColumnsOf(a.shape, head);
  const Visibility visibility = VisibilityOf(tile.document, a.shape.window);
  HeadVector dq = {};
  const int end = visibility.EndKey(query);
  for (int key0 = visibility.FirstKey(query); key0 < end; key0 += 32) {
    const int count = end - key0 < 32 ? end - key0 : 32;
    const int64_t key_row = tile.document.first_key + key0;
    if (gpu::Lane() < count) {
      weights[gpu::Lane()] = PairOf(a, row, head, key_row + gpu::Lane(), at).dz;
    }
    gpu::SyncWarp();
    for (int j = 0; j < count; ++j) {
      const float dz = weights[j];
      Add(dq, 1.0f, dz, RowOf<float>(a.k, key_row + j) + at.key, at.size);
    }
    gpu::SyncWarp();
  }
  StoreHead(a.dq, row, at.query, at.size, dq, a.shape.scale);
}

// One warp a key and kv head, 32 queries at a time, the query heads of its group one after another.
QLORA_KERNEL void BackwardKeysF32(BackwardViews a) {
  gpu::SharedMemory memory;
  gpu::Shared<float> weights = memory.Take<float>(2 * kThreads) + gpu::Warp() * 64;
  const DocumentTile tile = FindTile(a.table, gpu::BlockX(), kWarps, true);
  const int key = tile.first + gpu::Warp();
  if (!tile.exists || key >= tile.document.keys) return;
  const int64_t group = a.shape.query_heads / a.shape.kv_heads;
  const int64_t row = tile.document.first_key + key;
  const Visibility visibility = VisibilityOf(tile.document, a.shape.window);
  HeadVector dk = {}, dv = {};
  const int end = visibility.EndQuery(key);
  Columns at = ColumnsOf(a.shape, gpu::BlockY() * group);
  for (int64_t head = gpu::BlockY() * group; head < (gpu::BlockY() + 1) * group; ++head) {
    at = ColumnsOf(a.shape, head);
    for (int query0 = visibility.FirstQuery(key); query0 < end; query0 += 32) {
      const int count = end - query0 < 32 ? end - query0 : 32;
      const int64_t query_row = tile.document.first_query + query0;
      if (gpu::Lane() < count) {
        const Pair pair = PairOf(a, query_row + gpu::Lane(), head, row, at);
        weights[gpu::Lane()] = pair.p;
        weights[32 + gpu::Lane()] = pair.dz;
      }
      gpu::SyncWarp();
      for (int j = 0; j < count; ++j) {
        const float p = weights[j], dz = weights[32 + j];
        Add(dv, 1.0f, p, RowOf<float>(a.dout, query_row + j) + at.query, at.size);
        Add(dk, 1.0f, dz, RowOf<float>(a.q, query_row + j) + at.query, at.size);
      }
      gpu::SyncWarp();
    }
  }
  StoreHead(a.dk, row, at.key, at.size, dk, a.shape.scale);
  StoreHead(a.dv, row, at.key, at.size, dv, 1.0f);
}

}  // namespace

void RunAttentionF32(const AttentionForward& op, const Context& context) {
  const ForwardViews a = {
      op.q, op.k, op.v, op.o, op.lse, op.shape, TableOf(op.documents, op.document_count)};
  gpu::Launch(context.launcher, AttentionForward::kName, &ForwardF32,
              {.blocks_x = TileCapacity(op.q.rows, op.documents, kWarps),
               .blocks_y = op.shape.query_heads,
               .threads = kThreads,
               .shared_bytes = kThreads * 4},
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
               .threads = kThreads,
               .shared_bytes = kThreads * 4},
              a);
  gpu::Launch(context.launcher, AttentionBackward::kName, &BackwardKeysF32,
              {.blocks_x = TileCapacity(op.k.rows, op.documents, kWarps),
               .blocks_y = op.shape.kv_heads,
               .threads = kThreads,
               .shared_bytes = 2 * kThreads * 4},
              a);
}

}  // namespace qlora::kernels::cuda
