#include "kernels/cuda/staging.h"

#include <algorithm>
#include <cstring>

namespace qlora::kernels::cuda {

StagingRing::~StagingRing() {
  for (Slot& slot : slots_) {
    if (slot.in_use) (void)gpu::SynchronizeEvent(slot.read);
    if (slot.read != nullptr) gpu::DestroyEvent(slot.read);
    gpu::FreePinned(slot.data);
  }
}

absl::Status StagingRing::Prepare(Slot* slot) {
  if (slot->in_use) {
    slot->in_use = false;
    return gpu::SynchronizeEvent(slot->read);
  }
  if (slot->data != nullptr) return absl::OkStatus();
  absl::StatusOr<gpu::Event> event = gpu::CreateEvent();
  if (!event.ok()) return event.status();
  slot->read = *event;
  absl::StatusOr<void*> data = gpu::AllocatePinned(kSlotBytes);
  if (!data.ok()) return data.status();
  slot->data = *data;
  return absl::OkStatus();
}

absl::Status StagingRing::Send(void* device, const void* host, int64_t bytes, gpu::Stream stream) {
  for (int64_t done = 0; done < bytes; done += kSlotBytes) {
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % kSlots;
    if (absl::Status s = Prepare(&slot); !s.ok()) return s;
    const int64_t count = std::min(kSlotBytes, bytes - done);
    std::memcpy(slot.data, static_cast<const uint8_t*>(host) + done, count);
    if (absl::Status s =
            gpu::CopyAsync(static_cast<uint8_t*>(device) + done, slot.data, count, stream);
        !s.ok()) {
      return s;
    }
    if (absl::Status s = gpu::Record(slot.read, stream); !s.ok()) return s;
    slot.in_use = true;
  }
  return absl::OkStatus();
}

}  // namespace qlora::kernels::cuda
