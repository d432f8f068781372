#include "kernels/cuda/ops.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/rms_norm_products.h"
#include "kernels/cuda/rms_norm_rows.h"
#include "kernels/cuda/warp.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kWarps = kNormWarps, kThreads = kWarps * 32;

// Who works on a row: one warp (`team` = 32) or the block. A team's threads go over the row's
// vectors, `team` at a time.
struct Team {
  int size, rank;
  int64_t row;
};
QLORA_DEVICE Team TeamOf(int size) {
  return {size, gpu::ThreadX() % size, gpu::BlockX() * (kThreads / size) + gpu::ThreadX() / size};
}
QLORA_DEVICE float TeamSum(float value, int size, gpu::Shared<float> partial) {
  return size == 32 ? WarpSum(value) : BlockSum(value, partial);
}

// Rows of heads are short: a warp each. Rows of the hidden size get a block.
int TeamFor(int64_t cols) { return cols <= kWarpRow ? 32 : kThreads; }

// What is normalised: x, or x + residual as it is stored.
template <class T>
QLORA_DEVICE void LoadSum(const NormForward& a, int64_t row, int64_t first, bool whole,
                          float (&s)[kVector<T>]) {
  LoadVector(RowOf<T>(a.x, row), first, a.x.cols, whole, s);
  if (a.residual.data == nullptr) return;
  float r[kVector<T>];
  LoadVector(RowOf<T>(a.residual, row), first, a.x.cols, whole, r);
  AddResidual<T>(s, r);
}

// Two passes over a row that the second finds in the cache: the first sums squares (and writes the
// sum), the second scales.
template <class T>
QLORA_KERNEL void RmsNormForwardKernel(NormForward a, bool whole, int team_size) {
  gpu::SharedMemory memory;
  gpu::Shared<float> partial = memory.Take<float>(kWarps);
  const Team team = TeamOf(team_size);
  const int64_t rows = LiveRowCount(a.live, a.x.rows / a.rows_per_token) * a.rows_per_token;
  const bool live = team.row < rows;
  const int64_t cols = a.x.cols;
  const int step = team.size * kVector<T>;
  float squares = 0.0f;
  for (int64_t i = team.rank * kVector<T>; live && i < cols; i += step) {
    float s[kVector<T>];
    LoadSum<T>(a, team.row, i, whole, s);
    if (a.sum.data != nullptr) StoreVector(RowOf<T>(a.sum, team.row), i, cols, whole, s);
    QLORA_UNROLL
    for (int j = 0; j < kVector<T>; ++j) squares = fmaf(s[j], s[j], squares);
  }
  squares = TeamSum(squares, team.size, partial);
  if (!live) return;
  const float rstd = RstdOf(a, squares);
  if (team.rank == 0) *RowOf<float>(a.rstd, team.row) = rstd;
  for (int64_t i = team.rank * kVector<T>; i < cols; i += step) {
    float s[kVector<T>];
    LoadSum<T>(a, team.row, i, whole, s);
    QLORA_UNROLL
    for (int j = 0; j < kVector<T>; ++j) {
      if (i + j < cols) s[j] = Normed(a, s[j], rstd, WidenAt(a.weight, 0, i + j));
    }
    StoreVector(RowOf<T>(a.y, team.row), i, cols, whole, s);
  }
}

struct BackwardArguments {
  ConstTensor dy, x, weight, rstd, dresidual;
  LiveRows live;
  int64_t rows_per_token;
  float weight_offset;
  Tensor dx;
  bool whole;
  int team;
};

// ds = rstd · (g − x̂ · mean(g·x̂)) + dresidual. Every element is read by the thread that writes it,
// before it does: dx may be dy or dresidual.
template <class T>
QLORA_KERNEL void RmsNormBackwardKernel(BackwardArguments a) {
  gpu::SharedMemory memory;
  gpu::Shared<float> partial = memory.Take<float>(kWarps);
  const Team team = TeamOf(a.team);
  const int64_t rows = LiveRowCount(a.live, a.x.rows / a.rows_per_token) * a.rows_per_token;
  const bool live = team.row < rows;
  const int64_t cols = a.x.cols;
  const int step = team.size * kVector<T>;
  const float rstd = live ? *RowOf<float>(a.rstd, team.row) : 0.0f;
  float dot = 0.0f;
  for (int64_t i = team.rank * kVector<T>; live && i < cols; i += step) {
    float g[kVector<T>], x[kVector<T>];
    LoadVector(RowOf<T>(a.dy, team.row), i, cols, a.whole, g);
    LoadVector(RowOf<T>(a.x, team.row), i, cols, a.whole, x);
    QLORA_UNROLL
    for (int j = 0; j < kVector<T>; ++j) {
      if (i + j < cols) {
        dot = fmaf(g[j] * (a.weight_offset + WidenAt(a.weight, 0, i + j)), x[j] * rstd, dot);
      }
    }
  }
  dot = TeamSum(dot, team.size, partial);
  if (!live) return;
  const float mean = dot / float(cols);
  for (int64_t i = team.rank * kVector<T>; i < cols; i += step) {
    float g[kVector<T>], x[kVector<T>], r[kVector<T>] = {};
    LoadVector(RowOf<T>(a.dy, team.row), i, cols, a.whole, g);
    LoadVector(RowOf<T>(a.x, team.row), i, cols, a.whole, x);
    if (a.dresidual.data != nullptr) {
      LoadVector(RowOf<T>(a.dresidual, team.row), i, cols, a.whole, r);
    }
    QLORA_UNROLL
    for (int j = 0; j < kVector<T>; ++j) {
      if (i + j >= cols) continue;
      const float scaled = g[j] * (a.weight_offset + WidenAt(a.weight, 0, i + j));
      g[j] = rstd * (scaled - x[j] * rstd * mean) + r[j];
    }
    StoreVector(RowOf<T>(a.dx, team.row), i, cols, a.whole, g);
  }
}

// dw += Σ dy · x̂ over the rows in order: one warp has 32 columns, and its block's warps share the
// rows; their sums are added in the warps' order. It runs before dx is written, which may be dy.
template <class T>
QLORA_KERNEL void RmsNormWeightKernel(BackwardArguments a, Tensor dweight) {
  gpu::SharedMemory memory;
  gpu::Shared<float> sums = memory.Take<float>(kThreads);
  const int64_t rows = LiveRowCount(a.live, a.x.rows / a.rows_per_token) * a.rows_per_token;
  const int64_t column = gpu::BlockX() * 32 + gpu::Lane();
  float sum = 0.0f;
  if (column < a.x.cols) {
    for (int64_t row = gpu::Warp(); row < rows; row += kWarps) {
      const float x_hat = Widen(RowOf<T>(a.x, row)[column]) * *RowOf<float>(a.rstd, row);
      sum = fmaf(Widen(RowOf<T>(a.dy, row)[column]), x_hat, sum);
    }
  }
  sums[gpu::ThreadX()] = sum;
  gpu::SyncThreads();
  if (gpu::Warp() != 0 || column >= a.x.cols) return;
  float total = 0.0f;
  for (int warp = 0; warp < kWarps; ++warp) {
    const float other = sums[warp * 32 + gpu::Lane()];
    total += other;
  }
  RowOf<float>(dweight, 0)[column] += total;
}

gpu::LaunchShape ShapeFor(int64_t rows, int team) {
  return {
      .blocks_x = CeilDiv(rows, kThreads / team), .threads = kThreads, .shared_bytes = kWarps * 4};
}

bool Whole(const ConstTensor& t) { return !t || IsAligned(t, 16); }

}  // namespace

void Run(const RmsNormForward& op, const Context& context) {
  if (IsNormWithProducts(op, context.card)) return RunNormWithProducts(op, context);
  const int team = TeamFor(op.x.cols);
  DispatchActivation(op.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    gpu::Launch(context.launcher, RmsNormForward::kName, &RmsNormForwardKernel<T>,
                ShapeFor(op.x.rows, team), NormForwardOf(op), HasAlignedRows(op), team);
  });
  for (const FirstProduct& product : op.products) {
    RunFirstProduct(RmsNormForward::kName, op.y, product, op.live_rows, context);
  }
}

void Run(const RmsNormBackward& op, const Context& context) {
  const bool whole = Whole(op.dy) && Whole(op.x) && Whole(op.dresidual) && Whole(op.dx);
  const BackwardArguments a = {op.dy,        op.x,         op.weight,         op.rstd,
                               op.dresidual, op.live_rows, op.rows_per_token, op.weight_offset,
                               op.dx,        whole,        TeamFor(op.x.cols)};
  DispatchActivation(op.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (op.dweight) {
      gpu::Launch(
          context.launcher, RmsNormBackward::kName, &RmsNormWeightKernel<T>,
          {.blocks_x = CeilDiv(op.x.cols, 32), .threads = kThreads, .shared_bytes = kThreads * 4},
          a, op.dweight);
    }
    gpu::Launch(context.launcher, RmsNormBackward::kName, &RmsNormBackwardKernel<T>,
                ShapeFor(op.x.rows, a.team), a);
  });
}

}  // namespace qlora::kernels::cuda
