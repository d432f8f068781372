#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/dense_matmul.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/linear_dequantized.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/vectors.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = kDequantizedElements;

// Views that stand side by side, or one below the other, behind a matrix.
struct Tail {
  ConstTensor parts[kMaxDequantizedSegments];
  float scale[kMaxDequantizedSegments];  // of each part
  int count = 0;
  void Add(const ConstTensor& part, float factor) {
    parts[count] = part;
    scale[count++] = factor;
  }
};

// Element (row, at) of [scale₀·part₀ | scale₁·part₁ | ... | 0].
QLORA_DEVICE float BesideAt(const Tail& tail, int64_t row, int64_t at) {
  for (int i = 0; i < tail.count; ++i) {
    const ConstTensor& part = tail.parts[i];
    if (at < part.cols) return tail.scale[i] * Widen(RowOf<Bf16>(part, row)[at]);
    at -= part.cols;
  }
  return 0.0f;
}

// out = [part₀ | part₁ | ... | 0], the few columns behind an activation's: element by element, by
// all threads of the grid.
QLORA_DEVICE void FillBehind(const Tail& parts, const Tensor& out) {
  const int64_t block = gpu::BlockX() * gpu::GridY() + gpu::BlockY();
  const int64_t threads = int64_t(gpu::GridX()) * gpu::GridY() * kThreads;
  for (int64_t i = block * kThreads + gpu::ThreadX(); i < out.rows * out.cols; i += threads) {
    const int64_t row = i / out.cols, at = i % out.cols;
    RowOf<Bf16>(out, row)[at] = Narrow<Bf16>(BesideAt(parts, row, at));
  }
}

// Eight elements of a weight's row from `column` on.
QLORA_DEVICE void LoadWeights(const DecodeSource& source, const ConstTensor& dense, int64_t columns,
                              int64_t row, int64_t column, gpu::Shared<float> table,
                              float (&w)[kPerThread]) {
  if (dense.data != nullptr) {
    LoadVector(RowOf<Bf16>(dense, row), column, columns, true, w);
    return;
  }
  const int64_t first = row * columns + column;
  const float scale = BlockScale(source, first >> source.log2_block);
  const uint32_t codes = *reinterpret_cast<const uint32_t*>(source.codes + first / 2);
  QLORA_UNROLL
  for (int i = 0; i < kPerThread; ++i) {
    // Byte i/2, its high nibble first.
    const uint32_t code = codes >> (i / 2 * 8 + (i % 2 == 0 ? 4 : 0)) & 15u;
    w[i] = ValueOf(table, code) * scale;
  }
}

// out[n] = [W[n] | scale₀·B₀[n] | scale₁·B₁[n] | ... | 0]: several rows a block, so that the table
// of values is filled seldom. Fills `behind`, if it is there, with `low` on the way.
QLORA_KERNEL void ExpandBeside(DecodeSource source, ConstTensor dense, int64_t columns, Tail tail,
                               Tensor out, Tail low, Tensor behind) {
  if (behind.data != nullptr) FillBehind(low, behind);
  gpu::SharedMemory memory;
  gpu::Shared<float> table = memory.Take<float>(kValueTableFloats);
  FillValueTable(source, table);
  gpu::SyncThreads();
  for (int64_t row = gpu::BlockX(); row < out.rows; row += gpu::GridX()) {
    for (int64_t first = (gpu::BlockY() * kThreads + gpu::ThreadX()) * kPerThread; first < out.cols;
         first += gpu::GridY() * kThreads * kPerThread) {
      float w[kPerThread];
      if (first < columns) {
        LoadWeights(source, dense, columns, row, first, table, w);
      } else {
        QLORA_UNROLL
        for (int i = 0; i < kPerThread; ++i) w[i] = BesideAt(tail, row, first + i - columns);
      }
      StoreVector(RowOf<Bf16>(out, row), first, out.cols, true, w);
    }
  }
}

// out = [W ; A₀ ; A₁ ; ... ; 0], likewise.
QLORA_KERNEL void ExpandAbove(DecodeSource source, ConstTensor dense, int64_t weight_rows,
                              Tail tail, Tensor out, Tail up, Tensor behind) {
  if (behind.data != nullptr) FillBehind(up, behind);
  gpu::SharedMemory memory;
  gpu::Shared<float> table = memory.Take<float>(kValueTableFloats);
  FillValueTable(source, table);
  gpu::SyncThreads();
  for (int64_t row = gpu::BlockX(); row < out.rows; row += gpu::GridX()) {
    for (int64_t first = (gpu::BlockY() * kThreads + gpu::ThreadX()) * kPerThread; first < out.cols;
         first += gpu::GridY() * kThreads * kPerThread) {
      float w[kPerThread];
      if (row < weight_rows) {
        LoadWeights(source, dense, out.cols, row, first, table, w);
      } else {
        QLORA_UNROLL
        for (int i = 0; i < kPerThread; ++i) w[i] = 0.0f;
        int64_t at = row - weight_rows;
        for (int part = 0; part < tail.count; ++part) {
          const ConstTensor& a = tail.parts[part];
          if (at >= 0 && at < a.rows) {
            LoadVector(RowOf<Bf16>(a, at), first, out.cols, false, w);
          }
          at -= a.rows;
        }
      }
      StoreVector(RowOf<Bf16>(out, row), first, out.cols, true, w);
    }
  }
}

// out[t] = [x[t] | low₀[t] | low₁[t] | ... | 0] for live rows, zeros behind them.
QLORA_KERNEL void Widened(ConstTensor x, Tail tail, LiveRows live, Tensor out) {
  const int64_t row = gpu::BlockX();
  const bool alive = row < LiveRowCount(live, x.rows);
  for (int64_t first = (gpu::BlockY() * kThreads + gpu::ThreadX()) * kPerThread; first < out.cols;
       first += gpu::GridY() * kThreads * kPerThread) {
    float v[kPerThread];
    QLORA_UNROLL
    for (int i = 0; i < kPerThread; ++i) v[i] = 0.0f;
    if (alive && first < x.cols) {
      LoadVector(RowOf<Bf16>(x, row), first, x.cols, true, v);
    } else if (alive) {
      QLORA_UNROLL
      for (int i = 0; i < kPerThread; ++i) v[i] = BesideAt(tail, row, first + i - x.cols);
    }
    StoreVector(RowOf<Bf16>(out, row), first, out.cols, true, v);
  }
}

gpu::LaunchShape RowsOf(const Tensor& out, bool table) {
  constexpr int64_t kRowsOfABlock = 8;
  return {.blocks_x = table ? CeilDiv(out.rows, kRowsOfABlock) : out.rows,
          .blocks_y = std::min<int64_t>(CeilDiv(out.cols, kThreads * kPerThread), 4),
          .threads = kThreads,
          .shared_bytes = table ? kValueTableFloats * 4 : 0};
}

DecodeSource SourceOf(const LinearBase& base) {
  return base.kind == LinearBase::Kind::kQuantized ? DecodeSourceOf(base.quantized)
                                                   : DecodeSource{};
}
ConstTensor DenseOf(const LinearBase& base) {
  return base.kind == LinearBase::Kind::kDense ? base.dense : ConstTensor{};
}

// low = alpha · D∘x · op(a)ᵀ: by the library where it can, else by our own product.
void RunFirst(const char* name, const ConstTensor& x, const ConstTensor& a, bool transpose,
              float alpha, const Dropout& dropout, const LiveRows& live, const Tensor& low,
              void* library, const Context& context) {
  const bool plain = !(dropout.probability > 0) && IsAligned(x, 16) && IsAligned(a, 16) &&
                     IsAligned(low, 16) && low.cols % 8 == 0;
  if (plain) {
    gpu::RunDenseMatmul(
        context.launcher, name,
        {.a = x, .b = a, .c = low, .transpose_b = transpose, .alpha = alpha, .workspace = library});
    return;
  }
  Product product;
  product.rows = x.rows;
  product.columns = low.cols;
  product.live = PointerOf(live);
  product.alpha = alpha;
  product.c = low;
  ProductTerm* term = AddTerm(&product, context);
  term->a = DenseOperand(x, false);
  term->b = DenseOperand(a, !transpose);
  term->depth = x.cols;
  term->mask_a = MaskOf(dropout, x.cols, {});
  if (term->mask_a.threshold > 0) product.alpha *= KeptScale(dropout);
  RunProduct(name, product, /*bf16=*/true, context);
}

// [x | tail] where it lies.
ConstTensor WithTail(ConstTensor x, const Tensor& tail, const char* name, const Context& context) {
  if (!tail) return x;
  if (tail.data != x.Row<Bf16>(0) + x.cols || tail.pitch != x.pitch || tail.rows != x.rows) {
    context.launcher.Fail(absl::InternalError(absl::StrCat(
        name, ": the tail of [", tail.rows, ", ", tail.cols, "] is not behind its activation")));
  }
  x.cols += tail.cols;
  return x;
}

}  // namespace

void RunDequantized(const LinearForward& op, const Context& context) {
  const DequantizedLayout layout = LayoutOf(op);
  Tail up, low;
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& segment = op.adapters[i];
    if (!segment.IsLowGiven()) {
      RunFirst(LinearForward::kName, op.x, segment.a, true, 1.0f, segment.dropout, op.live_rows,
               op.low[i], layout.library, context);
    }
    up.Add(segment.b, segment.scale);
    low.Add(LowOf(op, i), 1.0f);
  }
  if (layout.weight) {
    gpu::Launch(context.launcher, LinearForward::kName, &ExpandBeside, RowsOf(layout.weight, true),
                SourceOf(op.base), DenseOf(op.base), op.base.in_features, up, layout.weight, low,
                op.tail);
  }
  if (layout.wide) {
    gpu::Launch(context.launcher, LinearForward::kName, &Widened, RowsOf(layout.wide, false), op.x,
                low, op.live_rows, layout.wide);
  }
  gpu::RunDenseMatmul(context.launcher, LinearForward::kName,
                      {.a = layout.wide ? ConstTensor(layout.wide)
                                        : WithTail(op.x, op.tail, LinearForward::kName, context),
                       .b = layout.weight ? ConstTensor(layout.weight) : op.base.dense,
                       .bias = op.bias,
                       .c = op.y,
                       .transpose_b = true,
                       .workspace = layout.library});
}

void RunDequantized(const LinearBackwardInput& op, const Context& context) {
  const DequantizedLayout layout = LayoutOf(op);
  Tail down, up;
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& segment = op.adapters[i];
    RunFirst(LinearBackwardInput::kName, op.dy, segment.b, false, segment.scale, {}, op.live_rows,
             op.up[i], layout.library, context);
    down.Add(segment.a, 1.0f);
    up.Add(op.up[i], 1.0f);
  }
  if (layout.weight) {
    gpu::Launch(context.launcher, LinearBackwardInput::kName, &ExpandAbove,
                RowsOf(layout.weight, true), SourceOf(op.base), DenseOf(op.base),
                op.base.out_features, down, layout.weight, up, op.tail);
  }
  if (layout.wide) {
    gpu::Launch(context.launcher, LinearBackwardInput::kName, &Widened, RowsOf(layout.wide, false),
                op.dy, up, op.live_rows, layout.wide);
  }
  gpu::RunDenseMatmul(
      context.launcher, LinearBackwardInput::kName,
      {.a = layout.wide ? ConstTensor(layout.wide)
                        : WithTail(op.dy, op.tail, LinearBackwardInput::kName, context),
       .b = layout.weight ? ConstTensor(layout.weight) : op.base.dense,
       .c = op.dx,
       .transpose_b = false,
       .accumulate = op.accumulate,
       .workspace = layout.library});
}

}  // namespace qlora::kernels::cuda
