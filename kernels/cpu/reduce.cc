#include "kernels/ops/reduce.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/xxh64.h"

namespace qlora::kernels::cpu {
namespace {

int64_t CeilDiv(int64_t n, int64_t d) { return (n + d - 1) / d; }

struct ChunkNorm {
  double sum;
  int64_t nonfinite;
};
static_assert(sizeof(ChunkNorm) == kChunkSumBytes);

}  // namespace

void Run(const NormAndFinite& op, const Context& context) {
  const int64_t n = op.x.Count();
  const int64_t chunks = op.x ? CeilDiv(n, kReduceChunk) : op.workspace.Count() / kChunkSumBytes;
  ChunkNorm* partial = op.workspace.Row<ChunkNorm>(0);
  const bool bf16 = op.x.dtype == DType::kBf16;
  ForTiles(context.pool, n, kReduceChunk, [&](int64_t begin, int64_t end) {
    ChunkNorm& chunk = partial[begin / kReduceChunk];
    chunk.nonfinite = 0;
    chunk.sum = SimdFor(context.isa)
                    .sum_of_squares(op.x.Row<uint8_t>(0) + begin * SizeOf(op.x.dtype), bf16,
                                    end - begin, &chunk.nonfinite);
  });
  if (!op.sum_of_squares) return;
  double sum = 0.0;
  int64_t nonfinite = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    sum += partial[c].sum;
    nonfinite += partial[c].nonfinite;
  }
  op.sum_of_squares.Scalar<double>() = sum;
  op.nonfinite.Scalar<int32_t>() =
      int32_t(std::min<int64_t>(nonfinite, std::numeric_limits<int32_t>::max()));
}
int64_t WorkspaceBytes(const NormAndFinite& op, Isa) {
  return CeilDiv(op.x.Count(), kReduceChunk) * kChunkSumBytes;
}

void Run(const ContentHash& op, const Context& context) {
  const int64_t bytes = op.x.Count() * SizeOf(op.x.dtype);
  const int64_t chunks = CeilDiv(bytes, kHashChunk);
  const uint8_t* data = static_cast<const uint8_t*>(op.x.data);
  uint64_t* hashes = op.workspace.Row<uint64_t>(0);
  context.pool.Run(chunks, [&](int64_t c, uint8_t*) {
    const int64_t begin = c * kHashChunk;
    hashes[c] = Xxh64(data + begin, std::min(kHashChunk, bytes - begin), uint64_t(c));
  });
  op.hash.Scalar<uint64_t>() = Xxh64(hashes, chunks * int64_t{sizeof(uint64_t)}, uint64_t(bytes));
}
int64_t WorkspaceBytes(const ContentHash& op, Isa) {
  return CeilDiv(op.x.Count() * SizeOf(op.x.dtype), kHashChunk) * int64_t{sizeof(uint64_t)};
}

template <class T>
static void Add(const AddGradient& op, const Context& context) {
  ForTiles(context.pool, op.into.Count(), kTileElements, [&](int64_t begin, int64_t end) {
    const T* from = op.from.Row<T>(0);
    T* into = op.into.Row<T>(0);
    for (int64_t i = begin; i < end; ++i) into[i] += from[i];
  });
}
void Run(const AddGradient& op, const Context& context) {
  op.into.dtype == DType::kF64 ? Add<double>(op, context) : Add<float>(op, context);
}
int64_t WorkspaceBytes(const AddGradient&, Isa) { return 0; }

void Run(const Zero& op, const Context& context) {
  constexpr int64_t kTileBytes = 256 << 10;
  const int64_t row_bytes = op.x.cols * SizeOf(op.x.dtype);
  const int64_t pitch_bytes = op.x.pitch * SizeOf(op.x.dtype);
  uint8_t* data = static_cast<uint8_t*>(op.x.data);
  if (op.x.rows == 1 || pitch_bytes == row_bytes) {
    ForTiles(context.pool, op.x.rows * row_bytes, kTileBytes,
             [&](int64_t begin, int64_t end) { std::memset(data + begin, 0, end - begin); });
    return;
  }
  const int64_t rows_per_tile = std::max<int64_t>(1, kTileBytes / std::max<int64_t>(1, row_bytes));
  ForTiles(context.pool, op.x.rows, rows_per_tile, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end && row_bytes > 0; ++r)
      std::memset(data + r * pitch_bytes, 0, row_bytes);
  });
}
int64_t WorkspaceBytes(const Zero&, Isa) { return 0; }

void Run(const GradientScale& op, const Context&) {
  const double inverse_tokens = op.inverse_tokens.Scalar<float>();
  const double norm = std::sqrt(op.sum_of_squares.Scalar<double>()) * inverse_tokens;
  const double clip = op.max_norm > 0.0f ? std::min(1.0, op.max_norm / (norm + 1e-6)) : 1.0;
  const float norm_f32 = float(norm);
  op.gradient_norm.Scalar<float>() = norm_f32;
  op.gradient_scale.Scalar<float>() = float(inverse_tokens * clip);
  const bool finite = op.nonfinite.Scalar<int32_t>() == 0 && std::isfinite(norm_f32) &&
                      std::isfinite(op.loss.Scalar<double>());
  op.skip.Scalar<int32_t>() = finite ? 0 : 1;
}
int64_t WorkspaceBytes(const GradientScale&, Isa) { return 0; }

}  // namespace qlora::kernels::cpu
