// A device of the CUDA backend, on a card or under the SIMT executor.
#ifndef QLORA_TESTS_CUDA_CUDA_DEVICE_H_
#define QLORA_TESTS_CUDA_CUDA_DEVICE_H_

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

#include "kernels/cuda/cuda_device.h"

namespace qlora::tests {

// Without one there is nothing to test.
inline std::unique_ptr<kernels::Device> CudaDevice(const kernels::cuda::CudaOptions& options = {}) {
  auto device = kernels::cuda::CreateCudaDevice(options);
  if (!device.ok()) {
    std::fprintf(stderr, "%s\n", device.status().ToString().c_str());
    std::abort();
  }
  return *std::move(device);
}

}  // namespace qlora::tests

#endif  // QLORA_TESTS_CUDA_CUDA_DEVICE_H_
