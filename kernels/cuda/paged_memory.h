// Paged memory of the CUDA backend.
//
// Where host and card may touch managed memory at the same time: one managed arena, its windows
// moved by prefetches on two side streams, one a direction, which meet the pieces' stream through
// events. Windows without a slot are read over the bus from where they lie (preferred location
// host, accessed by the device), so nothing ever faults its way across. Elsewhere, and where slots
// are lent: page-locked memory, and copies between it and slots on the card. (Physical pages behind
// a managed window could not be those of the memory that lends.)

#ifndef QLORA_KERNELS_CUDA_PAGED_MEMORY_H_
#define QLORA_KERNELS_CUDA_PAGED_MEMORY_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/runtime.h"
#include "kernels/paged_memory.h"

namespace qlora::kernels::cuda {

// `compute` is the stream of the pieces. ResourceExhausted where the card or the host has no room.
absl::StatusOr<std::unique_ptr<PagedMemory>> CreatePagedMemory(const PagedShape& shape,
                                                               const gpu::Properties& card,
                                                               gpu::Stream compute);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_PAGED_MEMORY_H_
