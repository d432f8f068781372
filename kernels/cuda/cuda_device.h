// The CUDA backend: pieces are captured as graphs and started on one stream.

#ifndef QLORA_KERNELS_CUDA_CUDA_DEVICE_H_
#define QLORA_KERNELS_CUDA_CUDA_DEVICE_H_

#include <memory>

#include "kernels/device.h"
#include "kernels/side_queue.h"

namespace qlora::kernels::cuda {

struct CudaOptions {
  int ordinal = 0;      // which of the machine's GPUs
  bool capture = true;  // false: every kernel of a piece is started by itself
};

// Oldest card that the kernels run on: compute capability 8.0 (bf16 tensor cores).
inline constexpr int kOldestMajor = 8;

// NotFound where there is no usable GPU: none in this build, no driver, too old a driver, no such
// card, or one older than kOldestMajor. Says which.
absl::StatusOr<std::unique_ptr<Device>> CreateCudaDevice(const CudaOptions& options);

// A stream beside that of a device made by CreateCudaDevice, which must outlive it.
absl::StatusOr<std::unique_ptr<SideQueue>> CreateSideQueue(Device* device);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_CUDA_DEVICE_H_
