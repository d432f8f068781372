#include "kernels/cuda/elements.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/reduce.h"

namespace qlora::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;  // 16 bytes of fp32

// ---- AddGradient

template <bool kAligned>
QLORA_KERNEL void AddGradientKernel(const float* from, float* into, int64_t n) {
  const int64_t first = (gpu::BlockX() * kThreads + gpu::ThreadX()) * kPerThread;
  if (kAligned && first + kPerThread <= n) {
    struct alignas(16) Four {
      float x[kPerThread];
    };
    const Four a = *reinterpret_cast<const Four*>(from + first);
    Four b = *reinterpret_cast<Four*>(into + first);
    QLORA_UNROLL
    for (int i = 0; i < kPerThread; ++i) b.x[i] += a.x[i];
    *reinterpret_cast<Four*>(into + first) = b;
  } else {
    for (int64_t i = first; i < first + kPerThread && i < n; ++i) into[i] += from[i];
  }
}

QLORA_KERNEL void AddDoubles(const double* from, double* into, int64_t n) {
  const int64_t i = gpu::BlockX() * kThreads + gpu::ThreadX();
  if (i < n) into[i] += from[i];
}

// ---- Zero

QLORA_KERNEL void ZeroRows(uint8_t* data, int64_t row_bytes, int64_t pitch_bytes) {
  uint8_t* row = data + gpu::BlockY() * pitch_bytes;
  const int64_t i = gpu::BlockX() * kThreads + gpu::ThreadX();
  if (i < row_bytes) row[i] = 0;
}

// ---- NormAndFinite

constexpr int kLanes = int(kReduceLanes);

struct ChunkNorm {
  double sum;
  int64_t nonfinite;
};
static_assert(sizeof(ChunkNorm) == kChunkSumBytes);

// Half a warp a chunk: thread l is sum l of the chunk, over elements l, l + 16, ... in order.
template <class T>
QLORA_KERNEL void NormOfChunks(const T* x, int64_t n, int64_t chunks, ChunkNorm* partial) {
  const int64_t thread = gpu::BlockX() * kThreads + gpu::ThreadX();
  const int64_t chunk = thread / kLanes;
  const int64_t begin = chunk * kReduceChunk;
  const int64_t end = begin + kReduceChunk < n ? begin + kReduceChunk : n;
  double sum = 0.0;
  int bad = 0;
  if (chunk < chunks) {
    for (int64_t i = begin + thread % kLanes; i < end; i += kLanes) {
      const float value = Widen(x[i]);
      if ((gpu::BitsOf(value) & 0x7fffffffu) > 0x7f7fffffu) {
        ++bad;
        continue;
      }
      sum += double(value) * double(value);
    }
  }
  QLORA_UNROLL
  for (int half = kLanes / 2; half > 0; half /= 2) {
    const double other = gpu::ShuffleXor(sum, half);
    const int other_bad = gpu::ShuffleXor(bad, half);
    // Lanes below `half` have the sums that the header names; the others follow without effect.
    sum += other;
    bad += other_bad;
  }
  if (chunk < chunks && thread % kLanes == 0) partial[chunk] = {sum, bad};
}

// The chunk sums in order. The block stages them, one thread adds.
QLORA_KERNEL void SumChunks(const ChunkNorm* partial, int64_t chunks, double* sum_of_squares,
                            int32_t* nonfinite) {
  gpu::SharedMemory memory;
  gpu::Shared<double> sums = memory.Take<double>(kThreads);
  gpu::Shared<int64_t> bads = memory.Take<int64_t>(kThreads);
  double sum = 0.0;
  int64_t bad = 0;
  for (int64_t first = 0; first < chunks; first += kThreads) {
    const int count = int(chunks - first < kThreads ? chunks - first : kThreads);
    if (gpu::ThreadX() < count) {
      const ChunkNorm chunk = partial[first + gpu::ThreadX()];
      sums[gpu::ThreadX()] = chunk.sum;
      bads[gpu::ThreadX()] = chunk.nonfinite;
    }
    gpu::SyncThreads();
    if (gpu::ThreadX() == 0) {
      for (int i = 0; i < count; ++i) {
        const double s = sums[i];
        const int64_t b = bads[i];
        sum += s;
        bad += b;
      }
    }
    gpu::SyncThreads();
  }
  if (gpu::ThreadX() != 0) return;
  *sum_of_squares = sum;
  *nonfinite = int32_t(bad < INT32_MAX ? bad : INT32_MAX);
}

// ---- GradientScale

struct ScaleArguments {
  const double* sum_of_squares;
  const int32_t* nonfinite;
  const double* loss;
  const float* inverse_tokens;
  float max_norm;
  float* gradient_norm;
  float* gradient_scale;
  int32_t* skip;
};

QLORA_KERNEL void GradientScaleKernel(ScaleArguments a) {
  if (gpu::ThreadX() != 0) return;
  const double inverse_tokens = *a.inverse_tokens;
  const double norm = sqrt(*a.sum_of_squares) * inverse_tokens;
  double clip = 1.0;
  if (a.max_norm > 0.0f) {
    const double factor = double(a.max_norm) / (norm + 1e-6);
    if (factor < 1.0) clip = factor;
  }
  const float norm_f32 = float(norm);
  *a.gradient_norm = norm_f32;
  *a.gradient_scale = float(inverse_tokens * clip);
  const double loss = *a.loss;
  // x − x is 0 for what is finite, and a NaN for the rest.
  const bool finite = *a.nonfinite == 0 && norm_f32 - norm_f32 == 0.0f && loss - loss == 0.0;
  *a.skip = finite ? 0 : 1;
}

}  // namespace

void Run(const AddGradient& op, const Context& context) {
  const int64_t n = op.into.Count();
  if (op.into.dtype == DType::kF64) {
    gpu::Launch(context.launcher, AddGradient::kName, &AddDoubles,
                {.blocks_x = CeilDiv(n, kThreads), .threads = kThreads},
                static_cast<const double*>(op.from.data), static_cast<double*>(op.into.data), n);
    return;
  }
  const bool aligned = IsAligned(op.from, 16) && IsAligned(op.into, 16);
  gpu::Launch(context.launcher, AddGradient::kName,
              aligned ? &AddGradientKernel<true> : &AddGradientKernel<false>,
              {.blocks_x = CeilDiv(n, kThreads * kPerThread), .threads = kThreads},
              static_cast<const float*>(op.from.data), static_cast<float*>(op.into.data), n);
}

void Run(const Zero& op, const Context& context) {
  const int64_t size = SizeOf(op.x.dtype);
  if (op.x.rows <= 1 || op.x.pitch == op.x.cols) {
    context.launcher.Fail(
        gpu::FillZeroAsync(op.x.data, op.x.Count() * size, context.launcher.stream()));
    return;
  }
  // 65535 rows a launch: what a grid's second dimension holds.
  constexpr int64_t kRows = 65535;
  for (int64_t first = 0; first < op.x.rows; first += kRows) {
    gpu::Launch(context.launcher, Zero::kName, &ZeroRows,
                {.blocks_x = CeilDiv(op.x.cols * size, kThreads),
                 .blocks_y = op.x.rows - first < kRows ? op.x.rows - first : kRows,
                 .threads = kThreads},
                static_cast<uint8_t*>(op.x.data) + first * op.x.pitch * size, op.x.cols * size,
                op.x.pitch * size);
  }
}

void Run(const NormAndFinite& op, const Context& context) {
  const int64_t n = op.x.Count();
  const int64_t chunks = op.x ? CeilDiv(n, kReduceChunk) : op.workspace.Count() / kChunkSumBytes;
  ChunkNorm* partial = static_cast<ChunkNorm*>(op.workspace.data);
  if (op.x) {
    DispatchActivation(op.x.dtype, [&](auto tag) {
      using T = typename decltype(tag)::Type;
      gpu::Launch(context.launcher, NormAndFinite::kName, &NormOfChunks<T>,
                  {.blocks_x = CeilDiv(chunks * kLanes, kThreads), .threads = kThreads},
                  static_cast<const T*>(op.x.data), n, chunks, partial);
    });
  }
  if (!op.sum_of_squares) return;
  gpu::Launch(context.launcher, NormAndFinite::kName, &SumChunks,
              {.threads = kThreads, .shared_bytes = kThreads * 16},
              static_cast<const ChunkNorm*>(partial), chunks,
              static_cast<double*>(op.sum_of_squares.data),
              static_cast<int32_t*>(op.nonfinite.data));
}

void Run(const GradientScale& op, const Context& context) {
  const ScaleArguments a = {static_cast<const double*>(op.sum_of_squares.data),
                            static_cast<const int32_t*>(op.nonfinite.data),
                            static_cast<const double*>(op.loss.data),
                            static_cast<const float*>(op.inverse_tokens.data),
                            op.max_norm,
                            static_cast<float*>(op.gradient_norm.data),
                            static_cast<float*>(op.gradient_scale.data),
                            static_cast<int32_t*>(op.skip.data)};
  gpu::Launch(context.launcher, GradientScale::kName, &GradientScaleKernel, {.threads = 32}, a);
}

}  // namespace qlora::kernels::cuda
