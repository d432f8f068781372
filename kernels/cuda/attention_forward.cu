#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention_f32.h"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/library_attention.h"

namespace qlora::kernels::cuda {
namespace {

// A block is 64 queries of one head: four warps with 16 queries each, over keys 64 at a time.
constexpr int kQueries = 64, kKeys = 64, kThreads = 128;

struct Arguments {
  ConstTensor q, k, v;
  Tensor o, lse;
  AttentionShape shape;
  DocumentTable table;
  bool vector;
};

// Online softmax over tiles of keys (Milakov & Gimelshein; FlashAttention's order): per query the
// largest logit so far, the sum of exponentials and the unnormalised output are kept, and rescaled
// when the largest grows. p is rounded to bf16 for its product with v.
template <int kD>
QLORA_KERNEL void QLORA_LAUNCH_BOUNDS(kThreads, 1) ForwardBf16(Arguments a) {
  const DocumentTile tile = FindTile(a.table, gpu::BlockX(), kQueries, false);
  if (!tile.exists) return;
  gpu::SharedMemory memory;
  gpu::Shared<uint16_t> q_tile = memory.Take<uint16_t>(TileElements<kD>(kQueries));
  gpu::Shared<uint16_t> k_tile = memory.Take<uint16_t>(TileElements<kD>(kKeys));
  gpu::Shared<uint16_t> v_tile = memory.Take<uint16_t>(TileElements<kD>(kKeys));
  const DocumentBounds document = tile.document;
  const Visibility visibility = VisibilityOf(document, a.shape.window);
  const int size = int(a.shape.head_size);
  const int64_t head = gpu::BlockY();
  const int64_t query_column = head * size;
  const int64_t key_column = head / (a.shape.query_heads / a.shape.kv_heads) * size;
  const int64_t last_key = document.first_key + document.keys;
  FillHeadTile<kD>(a.q, document.first_query + tile.first, document.first_query + document.queries,
                   query_column, size, a.vector, kQueries, q_tile);

  // A thread has rows `row` and `row + 8` of the tile, and column pairs of keys and outputs.
  const int row = gpu::Warp() * 16 + gpu::Lane() / 4, pair = gpu::Lane() % 4 * 2;
  float o[kD / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  const int last_query =
      (tile.first + kQueries < document.queries ? tile.first + kQueries : document.queries) - 1;
  const int end = visibility.EndKey(last_query);
  for (int key0 = visibility.FirstKey(tile.first) / kKeys * kKeys; key0 < end; key0 += kKeys) {
    gpu::SyncThreads();
    FillHeadTile<kD>(a.k, document.first_key + key0, last_key, key_column, size, a.vector, kKeys,
                     k_tile);
    FillHeadTile<kD>(a.v, document.first_key + key0, last_key, key_column, size, a.vector, kKeys,
                     v_tile);
    FinishFill();
    gpu::SyncThreads();

    float z[kKeys / 8][4] = {};
    for (int d = 0; d < kD; d += 16) {
      uint32_t q[4];
      LoadA(q, q_tile, false, kTilePitch<kD>, gpu::Warp() * 16, d);
      QLORA_UNROLL
      for (int n = 0; n < kKeys / 8; n += 2) {
        uint32_t k[4];
        LoadB(k, k_tile, false, kTilePitch<kD>, 8 * n, d);
        const uint32_t left[2] = {k[0], k[1]}, right[2] = {k[2], k[3]};
        gpu::MatrixMultiplyAdd(z[n], q, left);
        gpu::MatrixMultiplyAdd(z[n + 1], q, right);
      }
    }
    float keep[2];
    QLORA_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int query = tile.first + row + 8 * h;
      float tile_largest = -INFINITY;
      QLORA_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) {
        QLORA_UNROLL
        for (int j = 0; j < 2; ++j) {
          float& value = z[n][2 * h + j];
          const bool sees = visibility.Sees(query, key0 + 8 * n + pair + j);
          value = sees ? Logit(a.shape, value) : -INFINITY;
          tile_largest = fmaxf(tile_largest, value);
        }
      }
      // The four lanes of a row.
      tile_largest = fmaxf(tile_largest, gpu::ShuffleXor(tile_largest, 1));
      tile_largest = fmaxf(tile_largest, gpu::ShuffleXor(tile_largest, 2));
      const float now = fmaxf(largest[h], tile_largest);
      // A row that has seen no key yet: any finite number will do.
      const float base = now == -INFINITY ? 0.0f : now;
      keep[h] = gpu::FastExp(largest[h] - base);
      largest[h] = now;
      float tile_sum = 0.0f;
      QLORA_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) {
        QLORA_UNROLL
        for (int j = 0; j < 2; ++j) {
          float& value = z[n][2 * h + j];
          value = gpu::FastExp(value - base);
          tile_sum += value;
        }
      }
      sum[h] = sum[h] * keep[h] + tile_sum;
    }
    QLORA_UNROLL
    for (int n = 0; n < kD / 8; ++n) {
      QLORA_UNROLL
      for (int i = 0; i < 4; ++i) o[n][i] *= keep[i / 2];
    }
    QLORA_UNROLL
    for (int k = 0; k < kKeys; k += 16) {
      uint32_t p[4];
      PackA(p, z[k / 8], z[k / 8 + 1]);
      QLORA_UNROLL
      for (int n = 0; n < kD / 8; n += 2) {
        uint32_t v[4];
        LoadB(v, v_tile, true, kTilePitch<kD>, 8 * n, k);
        const uint32_t left[2] = {v[0], v[1]}, right[2] = {v[2], v[3]};
        gpu::MatrixMultiplyAdd(o[n], p, left);
        gpu::MatrixMultiplyAdd(o[n + 1], p, right);
      }
    }
  }
  // The tile of a document without keys loads no key, but its queries' copies are still on the way.
  FinishFill();

  QLORA_UNROLL
  for (int h = 0; h < 2; ++h) {
    // The sums of the four lanes, each over its own columns.
    float total = sum[h] + gpu::ShuffleXor(sum[h], 1);
    total += gpu::ShuffleXor(total, 2);
    const int query = tile.first + row + 8 * h;
    if (query >= document.queries) continue;
    const int64_t at = document.first_query + query;
    if (pair == 0) RowOf<float>(a.lse, at)[head] = largest[h] + logf(total);
    const float inverse = 1.0f / total;
    Bf16* to = RowOf<Bf16>(a.o, at) + query_column;
    QLORA_UNROLL
    for (int n = 0; n < kD / 8; ++n) {
      QLORA_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int c = 8 * n + pair + j;
        if (c < size) to[c] = Narrow<Bf16>(o[n][2 * h + j] * inverse);
      }
    }
  }
}

}  // namespace

void Run(const AttentionForward& op, const Context& context) {
  if (op.shape.kernel == AttentionKernel::kLibrary) return RunLibraryAttention(op, context);
  if (op.shape.head_size > 256) {
    context.launcher.Fail(absl::UnimplementedError(
        absl::StrCat("attention on CUDA takes heads of up to 256 elements, this model has ",
                     op.shape.head_size)));
    return;
  }
  if (op.q.dtype == DType::kF32) return RunAttentionF32(op, context);
  const bool vector = HeadsAreVectors(op.q, op.shape.head_size) &&
                      HeadsAreVectors(op.k, op.shape.head_size) &&
                      HeadsAreVectors(op.v, op.shape.head_size);
  const Arguments a = {
      op.q, op.k, op.v, op.o, op.lse, op.shape, TableOf(op.documents, op.document_count), vector};
  DispatchHeadSize(op.shape.head_size, [&](auto tag) {
    constexpr int kD = decltype(tag)::value;
    gpu::Launch(context.launcher, AttentionForward::kName, &ForwardBf16<kD>,
                {.blocks_x = TileCapacity(op.q.rows, op.documents, kQueries),
                 .blocks_y = op.shape.query_heads,
                 .threads = kThreads,
                 .shared_bytes = 2 * TileElements<kD>(kQueries + 2 * kKeys)},
                a);
  });
}

}  // namespace qlora::kernels::cuda
