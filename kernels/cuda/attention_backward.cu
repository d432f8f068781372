#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention_f32.h"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/library_attention.h"
#include "kernels/cuda/warp.h"

namespace qlora::kernels::cuda {
namespace {

// Two passes, seven products instead of five, and no sum whose order depends on who comes first:
// one block has 64 keys and walks over the queries that see them (dk, dv), one has 64 queries and
// walks over the keys they see (dq). Four warps, 16 rows each.
constexpr int kRows = 64, kThreads = 128;
// What the other side is walked over in: its tiles and the sums of pairs must leave room.
template <int kD>
inline constexpr int kStep = kD <= 128 ? 32 : 16;
// Columns of dk and dv that a block holds in registers; heads of 256 are shared by two blocks.
template <int kD>
inline constexpr int kOut = kD <= 128 ? kD : 128;

struct Arguments {
  ConstTensor q, k, v, o, dout, lse;
  float* delta;  // [Tq, query_heads]
  Tensor dq, dk, dv;
  AttentionShape shape;
  DocumentTable table;
  bool vector;
};

// D = Σ do·o, one warp a query and head.
template <class T>
QLORA_KERNEL void DeltaKernel(Arguments a) {
  const int warps = kThreads / 32;
  const DocumentTile tile = FindTile(a.table, gpu::BlockX(), warps, false);
  const int query = tile.first + gpu::Warp();
  if (!tile.exists || query >= tile.document.queries) return;
  const int64_t row = tile.document.first_query + query, head = gpu::BlockY();
  const T* o = RowOf<T>(a.o, row) + head * a.shape.head_size;
  const T* dout = RowOf<T>(a.dout, row) + head * a.shape.head_size;
  float sum = 0.0f;
  for (int c = gpu::Lane(); c < int(a.shape.head_size); c += 32) {
    sum = fmaf(Widen(dout[c]), Widen(o[c]), sum);
  }
  sum = WarpSum(sum);
  if (gpu::Lane() == 0) a.delta[row * a.shape.query_heads + head] = sum;
}

// 16 rows of `left` against kN columns of `right`, both [row][d] tiles: sums over the head.
template <int kD, int kN>
QLORA_DEVICE void PairProducts(gpu::Shared<uint16_t> left, int left_row,
                               gpu::Shared<uint16_t> right, float (&sum)[kN / 8][4]) {
  for (int d = 0; d < kD; d += 16) {
    uint32_t l[4];
    LoadA(l, left, false, kTilePitch<kD>, left_row, d);
    QLORA_UNROLL
    for (int n = 0; n < kN / 8; n += 2) {
      uint32_t r[4];
      LoadB(r, right, false, kTilePitch<kD>, 8 * n, d);
      const uint32_t first[2] = {r[0], r[1]}, second[2] = {r[2], r[3]};
      gpu::MatrixMultiplyAdd(sum[n], l, first);
      gpu::MatrixMultiplyAdd(sum[n + 1], l, second);
    }
  }
}

// out += pairs [16 × kN], rounded to bf16, times columns [column, column + kColumns) of the tile
// [kN][d].
template <int kD, int kN, int kColumns>
QLORA_DEVICE void AddProduct(const float (&pairs)[kN / 8][4], gpu::Shared<uint16_t> tile,
                             int column, float (&out)[kColumns / 8][4]) {
  QLORA_UNROLL
  for (int k = 0; k < kN; k += 16) {
    uint32_t p[4];
    PackA(p, pairs[k / 8], pairs[k / 8 + 1]);
    QLORA_UNROLL
    for (int n = 0; n < kColumns / 8; n += 2) {
      uint32_t t[4];
      LoadB(t, tile, true, kTilePitch<kD>, column + 8 * n, k);
      const uint32_t first[2] = {t[0], t[1]}, second[2] = {t[2], t[3]};
      gpu::MatrixMultiplyAdd(out[n], p, first);
      gpu::MatrixMultiplyAdd(out[n + 1], p, second);
    }
  }
}

// Writes a thread's rows of a result, scaled, up to row `rows` of the document.
template <int kColumns>
QLORA_DEVICE void StoreRows(const Tensor& to, int64_t first, int row, int rows, int64_t column,
                            int columns, float scale, const float (&out)[kColumns / 8][4]) {
  QLORA_UNROLL
  for (int h = 0; h < 2; ++h) {
    if (row + 8 * h >= rows) continue;
    Bf16* at = RowOf<Bf16>(to, first + row + 8 * h) + column;
    QLORA_UNROLL
    for (int n = 0; n < kColumns / 8; ++n) {
      QLORA_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int c = 8 * n + gpu::Lane() % 4 * 2 + j;
        if (c < columns) at[c] = Narrow<Bf16>(out[n][2 * h + j] * scale);
      }
    }
  }
}

template <int kD>
QLORA_KERNEL void QLORA_LAUNCH_BOUNDS(kThreads, 1) BackwardKeys(Arguments a) {
  constexpr int kN = kStep<kD>;
  const DocumentTile tile = FindTile(a.table, gpu::BlockX(), kRows, true);
  if (!tile.exists) return;
  gpu::SharedMemory memory;
  gpu::Shared<uint16_t> k_tile = memory.Take<uint16_t>(TileElements<kD>(kRows));
  gpu::Shared<uint16_t> v_tile = memory.Take<uint16_t>(TileElements<kD>(kRows));
  gpu::Shared<uint16_t> q_tile = memory.Take<uint16_t>(TileElements<kD>(kN));
  gpu::Shared<uint16_t> dout_tile = memory.Take<uint16_t>(TileElements<kD>(kN));
  const DocumentBounds document = tile.document;
  const Visibility visibility = VisibilityOf(document, a.shape.window);
  const int size = int(a.shape.head_size), out_column = int(gpu::BlockZ()) * kOut<kD>;
  const int64_t group = a.shape.query_heads / a.shape.kv_heads;
  const int64_t key_column = gpu::BlockY() * size;
  const int64_t last_key = document.first_key + document.keys;
  const int64_t last_query = document.first_query + document.queries;
  FillHeadTile<kD>(a.k, document.first_key + tile.first, last_key, key_column, size, a.vector,
                   kRows, k_tile);
  FillHeadTile<kD>(a.v, document.first_key + tile.first, last_key, key_column, size, a.vector,
                   kRows, v_tile);

  const int row = gpu::Warp() * 16 + gpu::Lane() / 4, pair = gpu::Lane() % 4 * 2;
  const int key_end = tile.first + kRows < document.keys ? tile.first + kRows : document.keys;
  const int begin = visibility.FirstQuery(tile.first) / kN * kN;
  const int end = visibility.EndQuery(key_end - 1);
  float dk[kOut<kD> / 8][4] = {}, dv[kOut<kD> / 8][4] = {};
  for (int64_t head = gpu::BlockY() * group; head < (gpu::BlockY() + 1) * group; ++head) {
    for (int query0 = begin; query0 < end; query0 += kN) {
      gpu::SyncThreads();
      FillHeadTile<kD>(a.q, document.first_query + query0, last_query, head * size, size, a.vector,
                       kN, q_tile);
      FillHeadTile<kD>(a.dout, document.first_query + query0, last_query, head * size, size,
                       a.vector, kN, dout_tile);
      FinishFill();
      gpu::SyncThreads();
      // Transposed: rows are keys, columns queries.
      float p[kN / 8][4] = {}, dz[kN / 8][4] = {};
      PairProducts<kD, kN>(k_tile, gpu::Warp() * 16, q_tile, p);
      PairProducts<kD, kN>(v_tile, gpu::Warp() * 16, dout_tile, dz);
      QLORA_UNROLL
      for (int n = 0; n < kN / 8; ++n) {
        QLORA_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int query = query0 + 8 * n + pair + i % 2, key = tile.first + row + i / 2 * 8;
          if (!visibility.Sees(query, key)) {
            p[n][i] = dz[n][i] = 0.0f;
            continue;
          }
          const int64_t query_row = document.first_query + query;
          const float z = Logit(a.shape, p[n][i]);
          const float weight = gpu::FastExp(z - RowOf<float>(a.lse, query_row)[head]);
          const float delta = a.delta[query_row * a.shape.query_heads + head];
          p[n][i] = weight;
          dz[n][i] = weight * (dz[n][i] - delta) * LogitSlope(a.shape, z);
        }
      }
      AddProduct<kD, kN, kOut<kD>>(p, dout_tile, out_column, dv);
      AddProduct<kD, kN, kOut<kD>>(dz, q_tile, out_column, dk);
    }
  }
  FinishFill();  // of tiles that no query looked at
  StoreRows<kOut<kD>>(a.dk, document.first_key, tile.first + row, document.keys,
                      key_column + out_column, size - out_column, a.shape.scale, dk);
  StoreRows<kOut<kD>>(a.dv, document.first_key, tile.first + row, document.keys,
                      key_column + out_column, size - out_column, 1.0f, dv);
}

template <int kD>
QLORA_KERNEL void QLORA_LAUNCH_BOUNDS(kThreads, 1) BackwardQueries(Arguments a) {
  constexpr int kN = kStep<kD>;
  const DocumentTile tile = FindTile(a.table, gpu::BlockX(), kRows, false);
  if (!tile.exists) return;
  gpu::SharedMemory memory;
  gpu::Shared<uint16_t> q_tile = memory.Take<uint16_t>(TileElements<kD>(kRows));
  gpu::Shared<uint16_t> dout_tile = memory.Take<uint16_t>(TileElements<kD>(kRows));
  gpu::Shared<uint16_t> k_tile = memory.Take<uint16_t>(TileElements<kD>(kN));
  gpu::Shared<uint16_t> v_tile = memory.Take<uint16_t>(TileElements<kD>(kN));
  const DocumentBounds document = tile.document;
  const Visibility visibility = VisibilityOf(document, a.shape.window);
  const int size = int(a.shape.head_size);
  const int64_t head = gpu::BlockY();
  const int64_t key_column = head / (a.shape.query_heads / a.shape.kv_heads) * size;
  const int64_t last_key = document.first_key + document.keys;
  const int64_t last_query = document.first_query + document.queries;
  FillHeadTile<kD>(a.q, document.first_query + tile.first, last_query, head * size, size, a.vector,
                   kRows, q_tile);
  FillHeadTile<kD>(a.dout, document.first_query + tile.first, last_query, head * size, size,
                   a.vector, kRows, dout_tile);

  const int row = gpu::Warp() * 16 + gpu::Lane() / 4, pair = gpu::Lane() % 4 * 2;
  float lse[2], delta[2];
  QLORA_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int query = tile.first + row + 8 * h;
    const int64_t at = document.first_query + query;
    const bool live = query < document.queries;
    lse[h] = live ? RowOf<float>(a.lse, at)[head] : 0.0f;
    delta[h] = live ? a.delta[at * a.shape.query_heads + head] : 0.0f;
  }
  const int query_end =
      tile.first + kRows < document.queries ? tile.first + kRows : document.queries;
  const int end = visibility.EndKey(query_end - 1);
  float dq[kD / 8][4] = {};
  for (int key0 = visibility.FirstKey(tile.first) / kN * kN; key0 < end; key0 += kN) {
    gpu::SyncThreads();
    FillHeadTile<kD>(a.k, document.first_key + key0, last_key, key_column, size, a.vector, kN,
                     k_tile);
    FillHeadTile<kD>(a.v, document.first_key + key0, last_key, key_column, size, a.vector, kN,
                     v_tile);
    FinishFill();
    gpu::SyncThreads();
    float p[kN / 8][4] = {}, dz[kN / 8][4] = {};
    PairProducts<kD, kN>(q_tile, gpu::Warp() * 16, k_tile, p);
    PairProducts<kD, kN>(dout_tile, gpu::Warp() * 16, v_tile, dz);
    QLORA_UNROLL
    for (int n = 0; n < kN / 8; ++n) {
      QLORA_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int query = tile.first + row + i / 2 * 8, key = key0 + 8 * n + pair + i % 2;
        if (!visibility.Sees(query, key)) {
          dz[n][i] = 0.0f;
          continue;
        }
        const float z = Logit(a.shape, p[n][i]);
        const float weight = gpu::FastExp(z - lse[i / 2]);
        dz[n][i] = weight * (dz[n][i] - delta[i / 2]) * LogitSlope(a.shape, z);
      }
    }
    AddProduct<kD, kN, kD>(dz, k_tile, 0, dq);
  }
  FinishFill();
  StoreRows<kD>(a.dq, document.first_query, tile.first + row, document.queries, head * size, size,
                a.shape.scale, dq);
}

template <class T>
void LaunchDelta(const AttentionBackward& op, const Arguments& a, const Context& context) {
  gpu::Launch(context.launcher, AttentionBackward::kName, &DeltaKernel<T>,
              {.blocks_x = TileCapacity(op.q.rows, op.documents, kThreads / 32),
               .blocks_y = op.shape.query_heads,
               .threads = kThreads},
              a);
}

}  // namespace

void Run(const AttentionBackward& op, const Context& context) {
  if (op.shape.kernel == AttentionKernel::kLibrary) return RunLibraryAttention(op, context);
  if (op.shape.head_size > 256) {
    context.launcher.Fail(absl::UnimplementedError(
        absl::StrCat("attention on CUDA takes heads of up to 256 elements, this model has ",
                     op.shape.head_size)));
    return;
  }
  bool vector = true;
  for (const ConstTensor& t : {op.q, op.k, op.v, op.dout}) {
    vector = vector && HeadsAreVectors(t, op.shape.head_size);
  }
  float* delta = static_cast<float*>(op.workspace.data);
  const Arguments a = {op.q,    op.k,   op.v,     op.o,
                       op.dout, op.lse, delta,    op.dq,
                       op.dk,   op.dv,  op.shape, TableOf(op.documents, op.document_count),
                       vector};
  if (op.q.dtype == DType::kF32) {
    LaunchDelta<float>(op, a, context);
    return RunAttentionF32(op, delta, context);
  }
  LaunchDelta<Bf16>(op, a, context);
  DispatchHeadSize(op.shape.head_size, [&](auto tag) {
    constexpr int kD = decltype(tag)::value;
    gpu::LaunchShape shape = {.blocks_x = TileCapacity(op.k.rows, op.documents, kRows),
                              .blocks_y = op.shape.kv_heads,
                              .blocks_z = CeilDiv(op.shape.head_size, kOut<kD>),
                              .threads = kThreads,
                              .shared_bytes = 2 * TileElements<kD>(2 * kRows + 2 * kStep<kD>)};
    gpu::Launch(context.launcher, AttentionBackward::kName, &BackwardKeys<kD>, shape, a);
    shape.blocks_x = TileCapacity(op.q.rows, op.documents, kRows);
    shape.blocks_y = op.shape.query_heads;
    shape.blocks_z = 1;
    gpu::Launch(context.launcher, AttentionBackward::kName, &BackwardQueries<kD>, shape, a);
  });
}

}  // namespace qlora::kernels::cuda
