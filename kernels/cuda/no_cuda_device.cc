// Stands in for the CUDA backend in a build without a CUDA compiler.

#include "kernels/cuda/cuda_device.h"

namespace qlora::kernels::cuda {
namespace {

absl::Status NotBuilt() {
  return absl::NotFoundError(
      "this program was built without its CUDA backend (no nvcc was found when it was configured)");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CreateCudaDevice(const CudaOptions&) { return NotBuilt(); }
absl::StatusOr<std::unique_ptr<SideQueue>> CreateSideQueue(Device*) { return NotBuilt(); }

}  // namespace qlora::kernels::cuda
