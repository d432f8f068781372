// A card that need not be here: answers what the plan asks of a device and runs nothing.

#ifndef QLORA_KERNELS_CUDA_PLANNED_CARD_H_
#define QLORA_KERNELS_CUDA_PLANNED_CARD_H_

#include <memory>

#include "kernels/cuda/runtime.h"
#include "kernels/device.h"

namespace qlora::kernels::cuda {

// Workspaces and kernels are those that the CUDA device would use on such a card, the vendor's
// library taken for granted. Whatever would need the card is Unimplemented. In every build.
std::unique_ptr<Device> PlannedCard(const gpu::Properties& card);

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_PLANNED_CARD_H_
