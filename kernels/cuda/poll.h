// Asking for an event without waiting for it: it may stand behind work of another library, which
// may never end. Part of the runtime, implemented where the calls of runtime.h are.

#ifndef QLORA_KERNELS_CUDA_POLL_H_
#define QLORA_KERNELS_CUDA_POLL_H_

#include "kernels/cuda/runtime.h"

namespace qlora::gpu {

// Whether the card has passed the event's last Record. Reports what failed.
absl::StatusOr<bool> HasPassed(Event event);

}  // namespace qlora::gpu

#endif  // QLORA_KERNELS_CUDA_POLL_H_
