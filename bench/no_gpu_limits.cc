// Stands in for gpu_limits.cc in a build without a CUDA compiler.

#include "bench/gpu_limits.h"

namespace qlora::bench {

absl::StatusOr<GpuLimits> MeasureGpu(int64_t) {
  return absl::NotFoundError("no CUDA backend in this build");
}
absl::StatusOr<int64_t> GpuBytesInUse() {
  return absl::NotFoundError("no CUDA backend in this build");
}

}  // namespace qlora::bench
