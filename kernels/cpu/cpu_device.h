// The CPU backend: ops run at once, in order, on a pool of threads.

#ifndef QLORA_KERNELS_CPU_CPU_DEVICE_H_
#define QLORA_KERNELS_CPU_CPU_DEVICE_H_

#include <memory>

#include "kernels/cpu/isa.h"
#include "kernels/device.h"

namespace qlora::kernels::cpu {

struct CpuOptions {
  int threads = 0;  // 0: one for each core that the process may use
  Isa isa = BestIsa();
};

// InvalidArgument where the machine lacks the instruction set.
absl::StatusOr<std::unique_ptr<Device>> CreateCpuDevice(const CpuOptions& options);

}  // namespace qlora::kernels::cpu

#endif  // QLORA_KERNELS_CPU_CPU_DEVICE_H_
