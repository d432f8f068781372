#include "kernels/cuda/product.h"
#include "kernels/cuda/rms_norm_products.h"
#include "kernels/cuda/rms_norm_rows.h"
#include "kernels/cuda/warp.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kWarps = kNormProductWarps, kThreads = kWarps * 32;
constexpr int kElements = kVector<Bf16>;
constexpr int kRanks = 16;  // rows of A in one matrix instruction
constexpr int kTokens = 8;  // rows of the tile in one
constexpr int kStep = 32;   // elements of K that a warp multiplies at a time, 8 a lane
// Steps of A that a warp has under way: 32 KB a block, within 64 registers a thread.
constexpr int kAhead = 2;
constexpr int kRowVectors = 32 * kElements;  // elements that a warp normalises at a time

// One FirstProduct as the kernel's argument.
struct NormProduct {
  const Bf16* a;
  Bf16* low;
  int64_t a_pitch, low_pitch;
  const int32_t* range;
  const int32_t* counter;
  uint32_t key, threshold;  // 0: keeps all
  int rank;
  float alpha;
};
struct NormProducts {
  NormProduct at[kMaxNormProducts];
  int count;
};

// ---- The norm

// Eight of the weight's elements.
QLORA_DEVICE void LoadWeight(const ConstTensor& weight, bool whole, int64_t first,
                             float (&w)[kElements]) {
  if (whole) {
    LoadVector(RowOf<Bf16>(weight, 0), first, weight.cols, true, w);
    return;
  }
  QLORA_UNROLL
  for (int i = 0; i < kElements; ++i) w[i] = WidenAt(weight, 0, first + i);
}

// Vectors [first, first + kCount · kRowVectors) of the sum, to memory and to `held`; their squares.
template <int kCount>
QLORA_DEVICE void AddVectors(const NormForward& a, int64_t row, int first,
                             gpu::Shared<gpu::Words4> held, float* squares) {
  const int cols = int(a.x.cols);
  // Loads before anything is stored, so that they are under way together.
  gpu::Words4 x[kCount] = {}, residual[kCount] = {};
  QLORA_UNROLL
  for (int j = 0; j < kCount; ++j) {
    const int i = first + j * kRowVectors;
    if (i >= cols) break;
    x[j] = *reinterpret_cast<const gpu::Words4*>(RowOf<Bf16>(a.x, row) + i);
    if (a.residual.data == nullptr) continue;
    residual[j] = *reinterpret_cast<const gpu::Words4*>(RowOf<Bf16>(a.residual, row) + i);
  }
  QLORA_UNROLL
  for (int j = 0; j < kCount; ++j) {
    const int i = first + j * kRowVectors;
    if (i >= cols) break;
    float s[kElements];
    WidenWords<Bf16>(x[j], s);
    if (a.residual.data != nullptr) {
      float r[kElements];
      WidenWords<Bf16>(residual[j], r);
      AddResidual<Bf16>(s, r);
      StoreVector(RowOf<Bf16>(a.sum, row), i, cols, true, s);
    }
    held[i / kElements] = NarrowWords<Bf16>(s);
    QLORA_UNROLL
    for (int e = 0; e < kElements; ++e) squares[j] = fmaf(s[e], s[e], squares[j]);
  }
}

// One warp: `row`, normed, to memory and to `held`. kSums: sums of squares a lane, one for each
// warp that rms_norm.cu gives a row, each over the same elements.
template <int kSums>
QLORA_DEVICE void NormaliseRow(const NormForward& a, bool whole_weight, int64_t row,
                               gpu::Shared<gpu::Words4> held) {
  constexpr int kCount = kSums < 4 ? kSums : 4;  // 64 registers a thread, two blocks at a time
  const int cols = int(a.x.cols);
  float squares[kSums] = {};
  for (int first = gpu::Lane() * kElements; first < cols; first += kSums * kRowVectors) {
    QLORA_UNROLL
    for (int j = 0; j < kSums; j += kCount) {
      AddVectors<kCount>(a, row, first + j * kRowVectors, held, squares + j);
    }
  }
  float total = 0.0f;
  QLORA_UNROLL
  for (int j = 0; j < kSums; ++j) total += WarpSum(squares[j]);
  const float rstd = RstdOf(a, total);
  if (gpu::Lane() == 0) *RowOf<float>(a.rstd, row) = rstd;
  // A lane reads back what it has written itself.
  for (int first = gpu::Lane() * kElements; first < cols; first += kRowVectors) {
    float y[kElements], w[kElements];
    const gpu::Words4 sum = held[first / kElements];
    WidenWords<Bf16>(sum, y);
    LoadWeight(a.weight, whole_weight, first, w);
    QLORA_UNROLL
    for (int e = 0; e < kElements; ++e) y[e] = Normed(a, y[e], rstd, w[e]);
    StoreVector(RowOf<Bf16>(a.y, row), first, cols, true, y);
    held[first / kElements] = NarrowWords<Bf16>(y);
  }
}

// ---- The products

// Zeroes what dropout drops of eight elements from `column` on; `row` counts from the segment's
// first.
QLORA_DEVICE void Drop(const NormProduct& p, int64_t row, int columns, int column,
                       gpu::Words4& words) {
  const uint64_t group = uint64_t(row * columns + column) / 4;
  QLORA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const auto bits = DropoutBits(p.counter, p.key, group + half);
    QLORA_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (bits[i] < p.threshold) words.w[2 * half + i / 2] &= i % 2 == 0 ? 0xffff0000u : 0xffffu;
    }
  }
}

// This warp's share of ranks [rank0, rank0 + 16) for the tile's rows, the first of which is `row0`.
// Which element of K stands in which column of a fragment is free as long as both operands agree:
// lane (g, t) brings elements 8t .. 8t + 7 of a step, of rows g and g + 8 of A and of row g of the
// tile, and one matrix instruction takes two pairs from each lane.
template <int kTiles>
QLORA_DEVICE void MultiplyTile(const NormProduct& p, int rank0, int64_t row0, int cols,
                               gpu::Shared<uint16_t> rows, int pitch, float (&sums)[kTiles][4]) {
  const int g = gpu::Lane() / 4, t = gpu::Lane() % 4;
  const bool has_left[2] = {rank0 + g < p.rank, rank0 + g + 8 < p.rank};
  const Bf16* const left_row = p.a + (rank0 + g) * p.a_pitch;
  for (int step = gpu::Warp() * kStep; step < cols; step += kAhead * kWarps * kStep) {
    gpu::Words4 left[kAhead][2] = {};
    QLORA_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      const int k = step + j * kWarps * kStep + t * kElements;
      if (k >= cols) break;
      QLORA_UNROLL
      for (int h = 0; h < 2; ++h) {
        if (has_left[h]) {
          left[j][h] = *reinterpret_cast<const gpu::Words4*>(left_row + 8 * h * p.a_pitch + k);
        }
      }
    }
    QLORA_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      const int begin = step + j * kWarps * kStep, k = begin + t * kElements;
      if (begin >= cols) break;
      QLORA_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        const int token = tile * kTokens + g;
        gpu::Words4 right = {};
        if (k < cols) {
          right = (rows + (token * pitch + k)).As<gpu::Words4>()[0];
          if (p.threshold > 0) {
            Drop(p, row0 + token - (p.range == nullptr ? 0 : p.range[0]), cols, k, right);
          }
        }
        QLORA_UNROLL
        for (int h = 0; h < 2; ++h) {
          const uint32_t a[4] = {left[j][0].w[2 * h], left[j][1].w[2 * h], left[j][0].w[2 * h + 1],
                                 left[j][1].w[2 * h + 1]};
          const uint32_t b[2] = {right.w[2 * h], right.w[2 * h + 1]};
          gpu::MatrixMultiplyAdd(sums[tile], a, b);
        }
      }
    }
  }
}

// One product for the tile: the warps' sums, added in the order of the warps.
template <int kTiles>
QLORA_DEVICE void RunProductOfTile(const NormProduct& p, int64_t row0, int64_t live, int cols,
                                   gpu::Shared<uint16_t> rows, int pitch,
                                   gpu::Shared<float> partial) {
  constexpr int kRows = kTiles * kTokens, kOutputs = kRows * kRanks;
  const Range range = RangeWithin(p.range, live);
  if (row0 >= range.end || row0 + kRows <= range.begin) return;
  for (int rank0 = 0; rank0 < p.rank; rank0 += kRanks) {
    float sums[kTiles][4] = {};
    MultiplyTile<kTiles>(p, rank0, row0, cols, rows, pitch, sums);
    QLORA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      QLORA_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int token = tile * kTokens + gpu::Lane() % 4 * 2 + e % 2;
        partial[gpu::Warp() * kOutputs + token * kRanks + gpu::Lane() / 4 + e / 2 * 8] =
            sums[tile][e];
      }
    }
    gpu::SyncThreads();
    const int64_t row = row0 + gpu::ThreadX() / kRanks;
    const int rank = rank0 + gpu::ThreadX() % kRanks;
    if (gpu::ThreadX() < kOutputs && row >= range.begin && row < range.end && rank < p.rank) {
      float sum = 0.0f;
      for (int warp = 0; warp < kWarps; ++warp) {
        const float other = partial[warp * kOutputs + gpu::ThreadX()];
        sum += other;
      }
      p.low[row * p.low_pitch + rank] = Narrow<Bf16>(sum * p.alpha);
    }
    gpu::SyncThreads();
  }
}

template <int kTiles, int kSums>
QLORA_LAUNCH_BOUNDS(kThreads, 2)
QLORA_KERNEL
    void RmsNormProductsKernel(NormForward a, bool whole_weight, int pitch, NormProducts products) {
  constexpr int kRows = kTiles * kTokens;
  const int64_t live = LiveRowCount(a.live, a.x.rows), row0 = gpu::BlockX() * kRows;
  if (row0 >= live) return;
  gpu::SharedMemory memory;
  const gpu::Shared<uint16_t> rows = memory.Take<uint16_t>(kRows * pitch);
  const gpu::Shared<float> partial = memory.Take<float>(kWarps * kRows * kRanks);
  for (int r = gpu::Warp(); r < kRows; r += kWarps) {
    const gpu::Shared<gpu::Words4> held = (rows + r * pitch).template As<gpu::Words4>();
    if (row0 + r < live) {
      NormaliseRow<kSums>(a, whole_weight, row0 + r, held);
    } else {
      for (int i = gpu::Lane(); i < int(a.x.cols / kElements); i += 32) held[i] = gpu::Words4{};
    }
  }
  gpu::SyncThreads();
  for (int i = 0; i < products.count; ++i) {
    RunProductOfTile<kTiles>(products.at[i], row0, live, int(a.x.cols), rows, pitch, partial);
  }
}

NormProducts ProductsOf(const RmsNormForward& op) {
  NormProducts products = {};
  for (const FirstProduct& p : op.products) {
    NormProduct& to = products.at[products.count++];
    to.a = p.a.Row<Bf16>(0);
    to.low = p.low.Row<Bf16>(0);
    to.a_pitch = p.a.pitch;
    to.low_pitch = p.low.pitch;
    to.range = PointerOf(p.rows);
    const Mask mask = MaskOf(p.dropout, op.x.cols, p.rows);
    to.counter = mask.counter;
    to.key = mask.key;
    to.threshold = mask.threshold;
    to.rank = int(p.a.rows);
    to.alpha = mask.threshold > 0 ? KeptScale(p.dropout) : 1.0f;
  }
  return products;
}

}  // namespace

void RunNormWithProducts(const RmsNormForward& op, const Context& context) {
  const NormTile tile = NormTileOf(op.x.cols, context.card);
  const auto launch = [&](auto kernel) {
    gpu::Launch(context.launcher, RmsNormForward::kName, kernel,
                {.blocks_x = CeilDiv(op.x.rows, tile.rows),
                 .threads = kThreads,
                 .shared_bytes = tile.bytes},
                NormForwardOf(op), op.weight.dtype == DType::kBf16 && IsAligned(op.weight, 16),
                int(tile.pitch), ProductsOf(op));
  };
  const bool is_short = op.x.cols <= kWarpRow;
  if (tile.rows == 16) {
    is_short ? launch(&RmsNormProductsKernel<2, 1>) : launch(&RmsNormProductsKernel<2, kNormWarps>);
  } else {
    is_short ? launch(&RmsNormProductsKernel<1, 1>) : launch(&RmsNormProductsKernel<1, kNormWarps>);
  }
}

}  // namespace qlora::kernels::cuda
