// What the system says of memory.

#ifndef QLORA_ENGINE_PLAN_HOST_MEMORY_H_
#define QLORA_ENGINE_PLAN_HOST_MEMORY_H_

#include <cstdint>

namespace qlora::engine {

// Bytes of this process that stand in memory, its program and mapped files included.
int64_t ResidentHostMemory();
// The most that this process may have resident: what it has now and what is free, within its
// control group's limit.
int64_t AvailableHostMemory();
// The largest ResidentHostMemory() has been, as the system counts it.
int64_t PeakHostMemory();

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_HOST_MEMORY_H_
