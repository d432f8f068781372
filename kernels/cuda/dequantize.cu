#include "kernels/cuda/decode.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/quantize.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 256;
// Elements of one thread: 4 bytes of codes, 16 bytes of bf16. Neighbouring threads read and write
// neighbouring bytes, and no block of 32 elements or more is split within a thread.
constexpr int kPerThread = 8;

// w = value(code) · scale in fp32, rounded once.
template <class T, bool kAligned>
QLORA_KERNEL void DequantizeKernel(DecodeSource source, T* w, int64_t n) {
  gpu::SharedMemory memory;
  gpu::Shared<float> table = memory.Take<float>(kValueTableFloats);
  FillValueTable(source, table);
  gpu::SyncThreads();
  const int64_t stride = gpu::GridX() * kThreads * kPerThread;
  for (int64_t first = (gpu::BlockX() * kThreads + gpu::ThreadX()) * kPerThread; first < n;
       first += stride) {
    const float scale = BlockScale(source, first >> source.log2_block);
    if (kAligned && first + kPerThread <= n) {
      const uint32_t codes = *reinterpret_cast<const uint32_t*>(source.codes + first / 2);
      alignas(16) T out[kPerThread];
      QLORA_UNROLL
      for (int i = 0; i < kPerThread; ++i) {
        // Byte i/2, its high nibble first.
        const uint32_t code = codes >> (i / 2 * 8 + (i % 2 == 0 ? 4 : 0)) & 15u;
        out[i] = Narrow<T>(ValueOf(table, code) * scale);
      }
      const gpu::Words4* from = reinterpret_cast<const gpu::Words4*>(out);
      gpu::Words4* to = reinterpret_cast<gpu::Words4*>(w + first);
      QLORA_UNROLL
      for (int i = 0; i < int(kPerThread * sizeof(T) / 16); ++i) to[i] = from[i];
    } else {
      for (int64_t i = first; i < first + kPerThread && i < n; ++i) {
        w[i] = Narrow<T>(ValueOf(table, CodeAt(source, i)) * scale);
      }
    }
  }
}

}  // namespace

void Run(const Dequantize& op, const Context& context) {
  const int64_t n = op.w.Count();
  const DecodeSource source = DecodeSourceOf(op.q);
  const bool aligned = IsAligned(op.q.codes, 4) && IsAligned(op.w, 16);
  // Several tiles a block where there are many, so that the table is filled seldom.
  const int64_t tiles = CeilDiv(n, kThreads * kPerThread);
  const gpu::LaunchShape shape = {.blocks_x = tiles < 8192 ? tiles : CeilDiv(tiles, 4),
                                  .threads = kThreads,
                                  .shared_bytes = kValueTableFloats * 4};
  DispatchWeight(op.w.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    gpu::Launch(context.launcher, Dequantize::kName,
                aligned ? &DequantizeKernel<T, true> : &DequantizeKernel<T, false>, shape, source,
                static_cast<T*>(op.w.data), n);
  });
}

}  // namespace qlora::kernels::cuda
