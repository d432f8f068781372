// kernels/cuda/nvidia/gpu/launch.h for the host: a launch copies its arguments and waits in its
// stream.

#ifndef QLORA_TESTS_SUPPORT_SIMT_GPU_LAUNCH_H_
#define QLORA_TESTS_SUPPORT_SIMT_GPU_LAUNCH_H_

#include <cstdint>
#include <functional>
#include <tuple>
#include <utility>

#include "kernels/cuda/runtime.h"

namespace qlora::gpu {

struct LaunchShape {
  int64_t blocks_x = 1, blocks_y = 1, blocks_z = 1;
  int threads = 128;
  int64_t shared_bytes = 0;
};

namespace internal {
void LaunchBody(Launcher& launcher, const char* name, const LaunchShape& shape,
                std::function<void()> body);
}  // namespace internal

template <class... Parameters, class... Arguments>
void Launch(Launcher& launcher, const char* name, void (*kernel)(Parameters...),
            const LaunchShape& shape, Arguments&&... arguments) {
  std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  internal::LaunchBody(launcher, name, shape, [kernel, values] { std::apply(kernel, values); });
}

}  // namespace qlora::gpu

#endif  // QLORA_TESTS_SUPPORT_SIMT_GPU_LAUNCH_H_
