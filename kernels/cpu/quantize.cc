#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/product.h"
#include "kernels/dynamic_code.h"

namespace qlora::kernels::cpu {
namespace {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements of one task: some ten microseconds of work.
constexpr int64_t kTaskElements = 64 * 1024;

constexpr int kGroup = quant::QuantSpec::kGroupSize;
constexpr int kMeanChunk = quant::QuantSpec::kMeanChunkBlocks;

// The second level, as quant/reference_quantizer.h defines it.
void QuantizeScales(const float* absmax, int64_t blocks, double* chunk_sums,
                    const QuantizedOutput& out, ThreadPool& pool) {
  const int64_t chunks = CeilDiv(blocks, kMeanChunk);
  pool.Run(chunks, [&](int64_t chunk, uint8_t*) {
    const int64_t end = std::min(blocks, (chunk + 1) * kMeanChunk);
    double sum = 0.0;
    for (int64_t b = chunk * kMeanChunk; b < end; ++b) sum += double(absmax[b]);
    chunk_sums[chunk] = sum;
  });
  double total = 0.0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += chunk_sums[chunk];
  const float offset = blocks == 0 ? 0.0f : float(total / double(blocks));
  out.offset.Scalar<float>() = offset;

  const DynamicCode& code = SignedDynamicCode();
  const int64_t groups = CeilDiv(blocks, kGroup);
  constexpr int64_t kGroupsPerTask = 32;
  uint8_t* codes = out.absmax.Row<uint8_t>(0);
  float* nested_out = out.nested_absmax.Row<float>(0);
  pool.Run(CeilDiv(groups, kGroupsPerTask), [&](int64_t task, uint8_t*) {
    const int64_t last = std::min(groups, (task + 1) * kGroupsPerTask);
    for (int64_t group = task * kGroupsPerTask; group < last; ++group) {
      const int64_t first = group * kGroup;
      const int64_t count = std::min<int64_t>(kGroup, blocks - first);
      float d[kGroup];
      float nested = 0.0f;
      for (int64_t i = 0; i < count; ++i) {
        d[i] = absmax[first + i] - offset;
        nested = std::max(nested, std::abs(d[i]));
      }
      if (nested < std::numeric_limits<float>::min()) nested = 0.0f;
      nested_out[group] = nested;
      const float reciprocal = 1.0f / nested;
      for (int64_t i = 0; i < count; ++i) {
        const float x = d[i] * reciprocal;
        const uint8_t c = code.base[std::bit_cast<uint32_t>(x) >> 16];
        codes[first + i] = nested == 0.0f ? 0 : uint8_t(c + (x >= code.next[c] ? 1 : 0));
      }
    }
  });
}

void Copy(const ConstTensor& from, const Tensor& to, ThreadPool& pool) {
  if (!from || !to) return;
  constexpr int64_t kPiece = 256 * 1024;
  const int64_t bytes = from.Extent();
  pool.Run(CeilDiv(bytes, kPiece), [&](int64_t piece, uint8_t*) {
    const int64_t begin = piece * kPiece;
    std::memcpy(static_cast<uint8_t*>(to.data) + begin,
                static_cast<const uint8_t*>(from.data) + begin, std::min(kPiece, bytes - begin));
  });
}

// The CPU computes on bitsandbytes' own bytes.
void CopyParts(const QuantizedTensor& from, const QuantizedOutput& to, ThreadPool& pool) {
  Copy(from.codes, to.codes, pool);
  Copy(from.absmax, to.absmax, pool);
  Copy(from.nested_absmax, to.nested_absmax, pool);
  Copy(from.offset, to.offset, pool);
}

}  // namespace

// Block scales in fp32 and the partial sums of their mean.
int64_t WorkspaceBytes(const Quantize& op, Isa) {
  if (!op.spec.double_quant) return 0;
  const int64_t blocks = op.spec.BlockCount(op.w.Count());
  return CeilDiv(blocks, kMeanChunk) * 8 + blocks * 4;
}

void Run(const Quantize& op, const Context& context) {
  const GemmKernels& kernels = *KernelsOf(context.isa).f32;
  const int64_t n = op.w.Count();
  const int64_t blocks = op.spec.BlockCount(n);
  const int64_t chunks = CeilDiv(blocks, kMeanChunk);
  double* chunk_sums = static_cast<double*>(op.workspace.data);
  float* absmax = op.spec.double_quant ? reinterpret_cast<float*>(chunk_sums + chunks)
                                       : static_cast<float*>(op.out.absmax.data);
  const int64_t task_elements = std::max<int64_t>(kTaskElements, op.spec.block_size);
  std::atomic<int64_t> nonfinite{0};
  context.pool.Run(CeilDiv(n, task_elements), [&](int64_t task, uint8_t*) {
    const int64_t first = task * task_elements;
    QuantizeArgs args;
    args.in = static_cast<const uint8_t*>(op.w.data) + first * SizeOf(op.w.dtype);
    args.dtype = op.w.dtype;
    args.count = std::min(task_elements, n - first);
    args.block_size = op.spec.block_size;
    args.rule = &quant::RuleOf(op.spec.type);
    args.codes = static_cast<uint8_t*>(op.out.codes.data) + first / 2;
    args.absmax = absmax + first / op.spec.block_size;
    kernels.quantize(args);
    if (args.nonfinite != 0) nonfinite.fetch_add(args.nonfinite, std::memory_order_relaxed);
  });
  if (op.nonfinite) {
    op.nonfinite.Scalar<int32_t>() =
        int32_t(std::min<int64_t>(nonfinite.load(), std::numeric_limits<int32_t>::max()));
  }
  if (op.spec.double_quant) QuantizeScales(absmax, blocks, chunk_sums, op.out, context.pool);
}

int64_t WorkspaceBytes(const Dequantize&, Isa) { return 0; }

void Run(const Dequantize& op, const Context& context) {
  const GemmKernels& kernels = *KernelsOf(context.isa).f32;
  const DecodeSource source = SourceOf(op.q);
  const int64_t n = op.w.Count();
  constexpr int64_t kPiece = 4096;  // 16 KB of fp32: stays in L1
  context.pool.Run(CeilDiv(n, kTaskElements), [&](int64_t task, uint8_t* scratch) {
    float* piece = reinterpret_cast<float*>(scratch);
    const int64_t end = std::min(n, (task + 1) * kTaskElements);
    for (int64_t i = task * kTaskElements; i < end; i += kPiece) {
      const int64_t count = std::min(kPiece, end - i);
      uint8_t* out = static_cast<uint8_t*>(op.w.data) + i * SizeOf(op.w.dtype);
      if (op.w.dtype == DType::kF32) {
        kernels.decode(source, i, count, false, reinterpret_cast<float*>(out));
        continue;
      }
      kernels.decode(source, i, count, false, piece);
      FinishArgs finish;
      finish.sum = piece;
      finish.count = count;
      finish.dtype = op.w.dtype;
      finish.out = out;
      kernels.finish(finish);
    }
  });
}

int64_t WorkspaceBytes(const Pack&, Isa) { return 0; }
int64_t WorkspaceBytes(const Unpack&, Isa) { return 0; }
void Run(const Pack& op, const Context& context) { CopyParts(op.from, op.to, context.pool); }
void Run(const Unpack& op, const Context& context) { CopyParts(op.from, op.to, context.pool); }

}  // namespace qlora::kernels::cpu
