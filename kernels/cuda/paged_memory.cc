#include "kernels/cuda/paged_memory.h"

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace qlora::kernels::cuda {
namespace {

// What of a slot's history others wait for.
struct Slot {
  int64_t window = -1;  // that is there, or on its way
  gpu::Event arrived = nullptr;
  gpu::Event used = nullptr;     // recorded behind the pieces that used it
  gpu::Event evicted = nullptr;  // recorded behind the move back
  bool was_evicted = false;      // `evicted` was recorded at least once
};

// Streams, events and the order of moves; how bytes lie and move is the derived class's.
class CudaPagedMemory : public PagedMemory {
 public:
  CudaPagedMemory(const PagedShape& shape, gpu::Stream compute)
      : PagedMemory(shape), compute_(compute), slots_(shape.slots) {}
  ~CudaPagedMemory() override {
    (void)Synchronize();
    for (const Slot& slot : slots_) {
      for (const gpu::Event event : {slot.arrived, slot.used, slot.evicted}) {
        if (event != nullptr) gpu::DestroyEvent(event);
      }
    }
    if (in_ != nullptr) gpu::DestroyStream(in_);
    if (out_ != nullptr) gpu::DestroyStream(out_);
  }

  virtual absl::Status Allocate() = 0;

  absl::Status CreateStreams() {
    for (gpu::Stream* stream : {&in_, &out_}) {
      absl::StatusOr<gpu::Stream> made = gpu::CreateStream();
      if (!made.ok()) return made.status();
      *stream = *made;
    }
    for (Slot& slot : slots_) {
      for (gpu::Event* event : {&slot.arrived, &slot.used, &slot.evicted}) {
        absl::StatusOr<gpu::Event> made = gpu::CreateEvent();
        if (!made.ok()) return made.status();
        *event = *made;
      }
    }
    return absl::OkStatus();
  }

  absl::Status Bring(int64_t w) override {
    if (shape().slots == 0) return absl::OkStatus();
    Slot& slot = slots_[shape().SlotOf(w)];
    if (shape().IsLent()) {
      // Until here pieces may have used the slot for something else.
      if (absl::Status s = gpu::Record(slot.used, compute_); !s.ok()) return s;
      if (absl::Status s = gpu::Wait(in_, slot.used); !s.ok()) return s;
    }
    if (slot.was_evicted) {
      if (absl::Status s = gpu::Wait(in_, slot.evicted); !s.ok()) return s;
    }
    if (absl::Status s = MoveIn(w, in_); !s.ok()) return s;
    slot.window = w;
    return gpu::Record(slot.arrived, in_);
  }
  absl::Status Await(int64_t w) override {
    if (shape().IsResident(w) || shape().slots == 0) return absl::OkStatus();
    return gpu::Wait(compute_, slots_[shape().SlotOf(w)].arrived);
  }
  absl::Status Evict(int64_t w) override {
    if (shape().IsResident(w) || shape().slots == 0) return absl::OkStatus();
    Slot& slot = slots_[shape().SlotOf(w)];
    if (absl::Status s = gpu::Record(slot.used, compute_); !s.ok()) return s;
    if (absl::Status s = gpu::Wait(out_, slot.used); !s.ok()) return s;
    // Pieces need not have used it: then it may still be on its way.
    if (absl::Status s = gpu::Wait(out_, slot.arrived); !s.ok()) return s;
    if (absl::Status s = MoveOut(w, out_); !s.ok()) return s;
    slot.window = -1;
    slot.was_evicted = true;
    return gpu::Record(slot.evicted, out_);
  }

  absl::Status Reclaim(int64_t i) override {
    Slot& slot = slots_[i];
    if (slot.window >= 0) {
      return absl::InternalError(absl::StrCat("slot ", i, " is wanted back, and window ",
                                              slot.window, " of paged memory is still there"));
    }
    if (!slot.was_evicted) return absl::OkStatus();
    slot.was_evicted = false;
    return gpu::Wait(compute_, slot.evicted);
  }

  absl::Status Claim(int64_t w) override {
    if (shape().IsResident(w) || shape().slots == 0) return absl::OkStatus();
    Slot& slot = slots_[shape().SlotOf(w)];
    slot.window = w;
    return slot.was_evicted ? gpu::Wait(compute_, slot.evicted) : absl::OkStatus();
  }
  absl::Status Drop(int64_t w) override {
    if (shape().IsResident(w) || shape().slots == 0) return absl::OkStatus();
    Slot& slot = slots_[shape().SlotOf(w)];
    slot.window = -1;
    slot.was_evicted = true;
    return gpu::Record(slot.evicted, compute_);
  }

  absl::Status Read(int64_t w, int64_t offset, void* to, int64_t bytes) override {
    if (absl::Status s = Synchronize(); !s.ok()) return s;
    if (!IsOnDevice(w)) {
      std::memcpy(to, HostAddress(w) + offset, bytes);
      return absl::OkStatus();
    }
    return CopyAndWait(to, static_cast<uint8_t*>(Address(w)) + offset, bytes);
  }
  absl::Status Write(int64_t w, int64_t offset, const void* from, int64_t bytes) override {
    if (absl::Status s = Synchronize(); !s.ok()) return s;
    if (!IsOnDevice(w)) {
      std::memcpy(HostAddress(w) + offset, from, bytes);
      return absl::OkStatus();
    }
    return CopyAndWait(static_cast<uint8_t*>(Address(w)) + offset, from, bytes);
  }

 protected:
  virtual absl::Status MoveIn(int64_t w, gpu::Stream stream) = 0;
  virtual absl::Status MoveOut(int64_t w, gpu::Stream stream) = 0;
  // Where the window's bytes are while it is not on the device.
  virtual uint8_t* HostAddress(int64_t w) const = 0;

  gpu::Stream compute() const { return compute_; }
  absl::Status Synchronize() {
    for (const gpu::Stream stream : {compute_, in_, out_}) {
      if (stream == nullptr) continue;
      if (absl::Status s = gpu::Synchronize(stream); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

 private:
  bool IsOnDevice(int64_t w) const {
    if (shape().IsResident(w)) return true;
    return shape().slots > 0 && slots_[shape().SlotOf(w)].window == w;
  }
  absl::Status CopyAndWait(void* to, const void* from, int64_t bytes) {
    if (absl::Status s = gpu::CopyAsync(to, from, bytes, compute_); !s.ok()) return s;
    return gpu::Synchronize(compute_);
  }

  const gpu::Stream compute_;
  gpu::Stream in_ = nullptr, out_ = nullptr;
  std::vector<Slot> slots_;
};

class ManagedMemory : public CudaPagedMemory {
 public:
  using CudaPagedMemory::CudaPagedMemory;
  ~ManagedMemory() override {
    (void)Synchronize();
    if (arena_ != nullptr) gpu::FreeManaged(arena_);
  }

  absl::Status Allocate() override {
    absl::StatusOr<void*> arena = gpu::AllocateManaged(shape().TotalBytes());
    if (!arena.ok()) return arena.status();
    arena_ = static_cast<uint8_t*>(*arena);
    const int64_t resident = shape().resident * shape().window_bytes;
    const int64_t rest = shape().TotalBytes() - resident;
    if (rest > 0) {
      absl::Status s = gpu::AdvisePreferred(arena_ + resident, rest, gpu::Side::kHost);
      if (s.ok()) s = gpu::AdviseAccessedByDevice(arena_ + resident, rest);
      if (!s.ok()) return s;
    }
    // The host's first touch puts the pages there.
    std::memset(arena_, 0, shape().TotalBytes());
    if (resident == 0) return absl::OkStatus();
    if (absl::Status s = gpu::AdvisePreferred(arena_, resident, gpu::Side::kDevice); !s.ok()) {
      return s;
    }
    return gpu::PrefetchAsync(arena_, resident, gpu::Side::kDevice, compute());
  }

  void* Address(int64_t w) const override { return arena_ + w * shape().window_bytes; }

 private:
  absl::Status MoveIn(int64_t w, gpu::Stream stream) override {
    return gpu::PrefetchAsync(Address(w), shape().window_bytes, gpu::Side::kDevice, stream);
  }
  absl::Status MoveOut(int64_t w, gpu::Stream stream) override {
    return gpu::PrefetchAsync(Address(w), shape().window_bytes, gpu::Side::kHost, stream);
  }
  uint8_t* HostAddress(int64_t w) const override { return static_cast<uint8_t*>(Address(w)); }

  uint8_t* arena_ = nullptr;
};

// Resident windows are on the card alone; the others at home in page-locked memory, which a card
// without managed access can still read over the bus, and copied to slots: behind the resident
// windows, or lent.
class PinnedMemory : public CudaPagedMemory {
 public:
  using CudaPagedMemory::CudaPagedMemory;
  ~PinnedMemory() override {
    (void)Synchronize();
    if (device_ != nullptr) gpu::FreeDevice(device_);
    if (host_ != nullptr) gpu::FreePinned(host_);
  }

  absl::Status Allocate() override {
    absl::StatusOr<void*> device = gpu::AllocateDevice(shape().DeviceBytes());
    if (!device.ok()) return device.status();
    device_ = static_cast<uint8_t*>(*device);
    const int64_t host_bytes = (shape().windows - shape().resident) * shape().window_bytes;
    absl::StatusOr<void*> host = gpu::AllocatePinned(host_bytes);
    if (!host.ok()) return host.status();
    host_ = static_cast<uint8_t*>(*host);
    if (host_ != nullptr) std::memset(host_, 0, host_bytes);
    absl::Status s = gpu::FillZeroAsync(device_, shape().DeviceBytes(), compute());
    // No window that is brought may be overtaken by it.
    return s.ok() ? gpu::Synchronize(compute()) : s;
  }

  void* Address(int64_t w) const override {
    if (shape().IsResident(w)) return device_ + w * shape().window_bytes;
    if (shape().slots == 0) return HostAddress(w);
    if (shape().IsLent()) return shape().LentSlot(shape().SlotOf(w));
    return device_ + (shape().resident + shape().SlotOf(w)) * shape().window_bytes;
  }

 private:
  absl::Status MoveIn(int64_t w, gpu::Stream stream) override {
    return gpu::CopyAsync(Address(w), HostAddress(w), shape().window_bytes, stream);
  }
  absl::Status MoveOut(int64_t w, gpu::Stream stream) override {
    return gpu::CopyAsync(HostAddress(w), Address(w), shape().window_bytes, stream);
  }
  uint8_t* HostAddress(int64_t w) const override {
    return host_ + (w - shape().resident) * shape().window_bytes;
  }

  uint8_t* device_ = nullptr;
  uint8_t* host_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PagedMemory>> CreatePagedMemory(const PagedShape& shape,
                                                               const gpu::Properties& card,
                                                               gpu::Stream compute) {
  std::unique_ptr<CudaPagedMemory> memory;
  if (card.concurrent_managed && !shape.page_locked) {
    memory = std::make_unique<ManagedMemory>(shape, compute);
  } else {
    memory = std::make_unique<PinnedMemory>(shape, compute);
  }
  if (absl::Status s = memory->CreateStreams(); !s.ok()) return s;
  if (absl::Status s = memory->Allocate(); !s.ok()) return s;
  return memory;
}

}  // namespace qlora::kernels::cuda
