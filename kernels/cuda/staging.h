// Page-locked host memory through which bytes pass on their way to the card, so that neither side
// waits for the other.

#ifndef QLORA_KERNELS_CUDA_STAGING_H_
#define QLORA_KERNELS_CUDA_STAGING_H_

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/cuda/runtime.h"

namespace qlora::kernels::cuda {

class StagingRing {
 public:
  // Bytes of one slot, and how many there are: two would do; four let the host run ahead by a few
  // micro-batches' inputs.
  static constexpr int64_t kSlotBytes = int64_t{4} << 20;
  static constexpr int kSlots = 4;

  StagingRing() = default;
  StagingRing(const StagingRing&) = delete;
  ~StagingRing();

  // Copies `bytes` from host memory to `device` in the order of `stream`. Returns once the host's
  // bytes are taken; waits only where all slots are still being read. Slots are allocated at first
  // use.
  absl::Status Send(void* device, const void* host, int64_t bytes, gpu::Stream stream);

 private:
  struct Slot {
    void* data = nullptr;
    gpu::Event read = nullptr;  // recorded behind the copy out of it
    bool in_use = false;
  };
  absl::Status Prepare(Slot* slot);

  std::array<Slot, kSlots> slots_;
  int next_ = 0;
};

}  // namespace qlora::kernels::cuda

#endif  // QLORA_KERNELS_CUDA_STAGING_H_
