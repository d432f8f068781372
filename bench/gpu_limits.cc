#include "bench/gpu_limits.h"

#include <algorithm>
#include <chrono>

#include "kernels/buffer.h"
#include "kernels/cuda/runtime.h"

namespace qlora::bench {
namespace {

constexpr int kTries = 5;
constexpr int kCopiesATry = 8;  // one wait on the host is nothing beside them

absl::StatusOr<double> CopySeconds(void* to, const void* from, int64_t bytes, gpu::Stream stream) {
  double best = 1e30;
  for (int i = 0; i < 1 + kTries; ++i) {  // the first warms up
    const auto begin = std::chrono::steady_clock::now();
    for (int copy = 0; copy < kCopiesATry; ++copy) {
      if (absl::Status s = gpu::CopyAsync(to, from, bytes, stream); !s.ok()) return s;
    }
    if (absl::Status s = gpu::Synchronize(stream); !s.ok()) return s;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (i > 0) best = std::min(best, seconds.count() / kCopiesATry);
  }
  return best;
}

absl::StatusOr<kernels::Buffer> NewBuffer(int64_t bytes) {
  absl::StatusOr<void*> data = gpu::AllocateDevice(bytes);
  if (!data.ok()) return data.status();
  return kernels::Buffer(*data, bytes, [](void* p, int64_t) { gpu::FreeDevice(p); });
}

}  // namespace

absl::StatusOr<GpuLimits> MeasureGpu(int64_t copy_bytes) {
  absl::StatusOr<gpu::Properties> card = gpu::OpenDevice(0);
  if (!card.ok()) return card.status();
  absl::StatusOr<kernels::Buffer> from = NewBuffer(copy_bytes), to = NewBuffer(copy_bytes);
  if (!from.ok()) return from.status();
  if (!to.ok()) return to.status();
  absl::StatusOr<gpu::Stream> stream = gpu::CreateStream();
  if (!stream.ok()) return stream.status();
  absl::Status zeroed = gpu::FillZeroAsync(from->data(), copy_bytes, *stream);
  const absl::StatusOr<double> seconds =
      zeroed.ok() ? CopySeconds(to->data(), from->data(), copy_bytes, *stream) : zeroed;
  gpu::DestroyStream(*stream);
  if (!seconds.ok()) return seconds.status();
  return GpuLimits{card->l2_bytes, 2.0 * copy_bytes / *seconds};
}

absl::StatusOr<int64_t> GpuBytesInUse() {
  absl::StatusOr<gpu::MemoryState> memory = gpu::DeviceMemory();
  if (!memory.ok()) return memory.status();
  return memory->total - memory->free;
}

}  // namespace qlora::bench
