// Offload as a rewrite of the program: buffers that forward leaves for backward wait in host memory
// and take turns in a few slots on the device. Copies run beside the ops; no byte of a result
// changes.

#ifndef QLORA_ENGINE_PLAN_OFFLOAD_H_
#define QLORA_ENGINE_PLAN_OFFLOAD_H_

#include <vector>

#include "absl/types/span.h"
#include "engine/record/program.h"
#include "kernels/paged_memory.h"

namespace qlora::engine {

// One is used by the layer at work, the other is on its way.
inline constexpr int64_t kOffloadSlots = 2;

struct OffloadedBuffers {
  std::vector<BufferId> windows;  // window w is this buffer
  kernels::PagedShape shape;      // no windows where nothing is offloaded
};

// Rewrites piece `piece_index` so that `buffers`, of one size and in the order in which forward
// fills them, become windows. Each must be dead in forward before the one kOffloadSlots behind it
// is written, and backward must read them in opposite order: what the inputs of a chain of layers
// do. Buffers that backward does not read are left alone.
OffloadedBuffers Offload(Program* program, int64_t piece_index, absl::Span<const BufferId> buffers);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_OFFLOAD_H_
