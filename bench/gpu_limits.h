// The card of this machine as the benchmarks see it: what it copies per second and what is taken of
// its memory. NotFound in a build without the CUDA backend.

#ifndef QLORA_BENCH_GPU_LIMITS_H_
#define QLORA_BENCH_GPU_LIMITS_H_

#include <cstdint>

#include "absl/status/statusor.h"

namespace qlora::bench {

struct GpuLimits {
  int64_t l2_bytes = 0;
  // Bytes read plus bytes written by the driver's own device-to-device copy of `copy_bytes`: the
  // mark for ops that are bound by memory. One that mostly reads may get beyond it.
  double copy_bytes_per_second = 0;
};

// Of the card that a CUDA device was made on. Takes and frees twice `copy_bytes`.
absl::StatusOr<GpuLimits> MeasureGpu(int64_t copy_bytes);

// The card's memory less what its driver calls free: context and libraries included, and whatever
// other programs hold there.
absl::StatusOr<int64_t> GpuBytesInUse();

}  // namespace qlora::bench

#endif  // QLORA_BENCH_GPU_LIMITS_H_
