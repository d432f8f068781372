// The one way to start a kernel, on NVIDIA hardware. tests/support/simt/gpu/launch.h has the same
// for the host.

#ifndef QLORA_KERNELS_CUDA_NVIDIA_GPU_LAUNCH_H_
#define QLORA_KERNELS_CUDA_NVIDIA_GPU_LAUNCH_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <tuple>
#include <utility>

#include "kernels/cuda/runtime.h"

namespace qlora::gpu {

struct LaunchShape {
  int64_t blocks_x = 1, blocks_y = 1, blocks_z = 1;
  int threads = 128;         // a block; a multiple of 32
  int64_t shared_bytes = 0;  // a block
};

namespace internal {
// Starts the kernel and notes any error under its name.
void LaunchRaw(Launcher& launcher, const char* name, const void* kernel, const LaunchShape& shape,
               void** arguments);
}  // namespace internal

// Starts `kernel` on the launcher's stream; nothing at all where a grid dimension is 0. The first
// error of a launcher is kept with the kernel's name, and later launches do nothing.
template <class... Parameters, class... Arguments>
void Launch(Launcher& launcher, const char* name, void (*kernel)(Parameters...),
            const LaunchShape& shape, Arguments&&... arguments) {
  std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  std::apply(
      [&](auto&... value) {
        void* pointers[sizeof...(Parameters) + 1] = {
            const_cast<void*>(static_cast<const void*>(&value))...};
        internal::LaunchRaw(launcher, name, reinterpret_cast<const void*>(kernel), shape, pointers);
      },
      values);
}

}  // namespace qlora::gpu

#endif  // QLORA_KERNELS_CUDA_NVIDIA_GPU_LAUNCH_H_
