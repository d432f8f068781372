#include "kernels/cpu/linear_gemv.h"

#include <algorithm>
#include <cstring>

namespace qlora::kernels::cpu {
namespace {

constexpr int64_t kRowsPerTile = 32;
// Depth handled at a time where rows of W are longer: half of the worker's scratch.
constexpr int64_t kMaxDepth = ThreadPool::kScratchBytes / 2 / 4;

int64_t Padded(int64_t n) { return (n + 15) / 16 * 16; }

const uint8_t* At(const ConstTensor& t, int64_t row, int64_t column) {
  return static_cast<const uint8_t*>(t.data) + (row * t.pitch + column) * SizeOf(t.dtype);
}

// out[i] = Σ_k W[n][k] · x[i · pitch + k] for i < rows; slices of kMaxDepth are added in order.
void BaseDots(const LinearBase& base, const DecodeSource& source, int64_t n, bool round,
              const float* x, int64_t pitch, int rows, const GemmKernels& kernels, float* scratch,
              float* out) {
  float part[kGemvRows];
  std::fill_n(out, rows, 0.0f);
  for (int64_t k = 0; k < base.in_features; k += kMaxDepth) {
    const int64_t depth = std::min(kMaxDepth, base.in_features - k);
    if (base.kind == LinearBase::Kind::kQuantized) {
      kernels.decode_dots(source, n * base.in_features + k, round, x + k, pitch, rows, depth,
                          scratch, part);
    } else {
      kernels.widen(At(base.dense, n, k), base.dense.dtype, depth, round, scratch);
      kernels.dots(scratch, x + k, pitch, rows, depth, part);
    }
    for (int i = 0; i < rows; ++i) out[i] += part[i];
  }
}

struct Segment {
  const AdapterSegment* adapter;
  int64_t begin, end;
  float* low;  // [end - begin, padded rank], rounded
  int64_t pitch;
};

}  // namespace

// x as fp32, one segment's x after dropout, and the lows as fp32.
int64_t GemvWorkspaceBytes(const LinearForward& op) {
  int64_t floats = 2 * op.x.rows * Padded(op.base.in_features);
  for (const AdapterSegment& segment : op.adapters) floats += op.x.rows * Padded(segment.a.rows);
  return floats * 4;
}

void RunGemv(const LinearForward& op, int64_t live, ThreadPool& pool, const KernelSet& set) {
  const GemmKernels& kernels = *set.f32;
  const bool round = op.x.dtype == DType::kBf16;
  const int64_t depth = op.base.in_features, pitch = Padded(depth);
  float* x = static_cast<float*>(op.workspace.data);
  float* dropped = x + op.x.rows * pitch;
  float* next_low = dropped + op.x.rows * pitch;
  for (int64_t t = 0; t < live; ++t)
    kernels.widen(At(op.x, t, 0), op.x.dtype, depth, false, x + t * pitch);

  std::vector<Segment> segments;
  segments.reserve(op.adapters.size());
  for (size_t i = 0; i < op.adapters.size(); ++i) {
    const AdapterSegment& adapter = op.adapters[i];
    const auto [begin, end] = RangeOf(adapter.rows, live);
    const int64_t rank = adapter.a.rows;
    if (begin == end || rank == 0) continue;
    const Segment& segment =
        segments.emplace_back(Segment{&adapter, begin, end, next_low, Padded(rank)});
    next_low += (end - begin) * segment.pitch;
    if (adapter.IsLowGiven()) {
      for (int64_t t = begin; t < end; ++t) {
        kernels.widen(At(adapter.given_low, t, 0), adapter.given_low.dtype, rank, false,
                      segment.low + (t - begin) * segment.pitch);
      }
      continue;
    }
    const float* in = x + begin * pitch;
    float alpha = 1.0f;
    if (adapter.dropout.probability > 0) {
      std::memcpy(dropped, in, sizeof(float) * (end - begin) * pitch);
      const DropoutArgs drop = ArgsOf(adapter.dropout);
      for (int64_t t = begin; t < end; ++t) {
        kernels.drop(drop, uint64_t((t - begin) * depth), depth, 1.0f,
                     dropped + (t - begin) * pitch);
      }
      in = dropped;
      alpha = KeptScale(adapter.dropout.probability);
    }
    LinearBase a;
    a.kind = LinearBase::Kind::kDense;
    a.in_features = depth;
    a.out_features = rank;
    a.dense = adapter.a;
    pool.Run(rank * depth * (end - begin) < 256 * 1024 ? 1 : (rank + 3) / 4,
             [&, from = begin, to = end](int64_t tile, uint8_t* scratch) {
               const bool all = rank * depth * (to - from) < 256 * 1024;
               const int64_t last = all ? rank : std::min(rank, tile * 4 + 4);
               for (int64_t j = all ? 0 : tile * 4; j < last; ++j) {
                 float sums[kGemvRows];
                 BaseDots(a, {}, j, round, in, pitch, int(to - from), kernels,
                          reinterpret_cast<float*>(scratch), sums);
                 for (int64_t t = from; t < to; ++t) {
                   FinishArgs finish;
                   finish.sum = &sums[t - from];
                   finish.alpha = alpha;
                   finish.count = 1;
                   finish.dtype = op.low[i].dtype;
                   finish.out = const_cast<uint8_t*>(At(op.low[i], t, j));
                   kernels.finish(finish);
                   kernels.widen(finish.out, finish.dtype, 1, false,
                                 &segment.low[(t - from) * segment.pitch + j]);
                 }
               }
             });
  }

  const int64_t columns = op.base.out_features;
  const bool has_base = op.base.kind != LinearBase::Kind::kNone;
  const DecodeSource source =
      op.base.kind == LinearBase::Kind::kQuantized ? SourceOf(op.base.quantized) : DecodeSource();
  const bool small = double(columns) * depth * live < 256 * 1024;
  const int64_t rows_per_tile = small ? std::max<int64_t>(columns, 1) : kRowsPerTile;
  pool.Run((columns + rows_per_tile - 1) / rows_per_tile, [&](int64_t tile,
                                                              uint8_t* scratch_bytes) {
    float* scratch = reinterpret_cast<float*>(scratch_bytes);
    float sums[kGemvRows], part[kGemvRows];
    const int64_t last = std::min(columns, (tile + 1) * rows_per_tile);
    for (int64_t n = tile * rows_per_tile; n < last; ++n) {
      std::fill_n(sums, kGemvRows, 0.0f);
      if (has_base)
        BaseDots(op.base, source, n, round, x, pitch, int(live), kernels, scratch, sums);
      for (const Segment& segment : segments) {
        const int rows = int(segment.end - segment.begin);
        const int64_t rank = segment.adapter->a.rows;
        kernels.widen(At(segment.adapter->b, n, 0), segment.adapter->b.dtype, rank, round, scratch);
        kernels.dots(scratch, segment.low, segment.pitch, rows, rank, part);
        for (int i = 0; i < rows; ++i) sums[segment.begin + i] += segment.adapter->scale * part[i];
      }
      float bias = 0;
      if (op.bias) kernels.widen(At(op.bias, 0, n), op.bias.dtype, 1, false, &bias);
      for (int64_t t = 0; t < live; ++t) {
        FinishArgs finish;
        finish.sum = &sums[t];
        finish.bias = op.bias ? &bias : nullptr;
        finish.count = 1;
        finish.dtype = op.y.dtype;
        finish.out = const_cast<uint8_t*>(At(op.y, t, n));
        kernels.finish(finish);
      }
    }
  });
}

}  // namespace qlora::kernels::cpu
