// PagedMemory: memory of a device that is larger than what the device may hold of it at a time. Cut
// into equal windows that are moved between device and host as a whole, on purpose, and behind the
// pieces: nothing here waits for the device except host access.
//
// This is the mechanism; when a window moves is decided by whoever owns it (engine/optim's
// StatePager, or the moves of a program). Between Await(w) or Claim(w) and Evict(w) or Drop(w)
// pieces may use window w at Address(w), at no other time.
//
// Slots may be lent: lie in memory that has another use, the activations' while there are none. A
// lent slot takes a window with Bring(w), behind all pieces started before, and is given back with
// Reclaim, when the window has been evicted: pieces started from then on may use its bytes for
// something else. So what the device holds at a time changes with the phases of a step.

#ifndef QLORA_KERNELS_PAGED_MEMORY_H_
#define QLORA_KERNELS_PAGED_MEMORY_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace qlora::kernels {

struct PagedShape {
  int64_t window_bytes =
      0;  // a multiple of kPagedWindowAlignment, of kBufferAlignment if page_locked
  int64_t windows = 0;
  // Windows [0, resident) stay on the device for good.
  int64_t resident = 0;
  // How many of the others may be there at a time: window w takes slot (w − resident) % slots. With
  // 0 slots pieces reach these windows where they lie in host memory, and nothing moves.
  int64_t slots = 0;
  // The bytes of a window lie in page-locked host memory while it is away, and are copied. Else the
  // device chooses between this and managed memory.
  bool page_locked = false;
  // Where in the memory at `lent` each slot begins, where slots are lent; empty: they are this
  // memory's own. Windows are then copied, so page_locked must be set: managed pages would take
  // memory beside that which was lent.
  std::vector<int64_t> lent_offsets;
  void* lent = nullptr;
  // Where a device whose own memory is the host's keeps the windows that are not in memory: a
  // folder for a file without a name.
  std::string folder;

  bool IsResident(int64_t w) const { return w < resident; }
  int64_t SlotOf(int64_t w) const { return (w - resident) % slots; }
  bool IsLent() const { return !lent_offsets.empty(); }
  void* LentSlot(int64_t slot) const { return static_cast<uint8_t*>(lent) + lent_offsets[slot]; }
  // Device memory that is this memory's own.
  int64_t DeviceBytes() const { return (resident + (IsLent() ? 0 : slots)) * window_bytes; }
  // The most that the device holds of the windows at a time.
  int64_t MostBytesThere() const { return (resident + slots) * window_bytes; }
  int64_t TotalBytes() const { return windows * window_bytes; }
  // Whether window w + 1 lies right behind window w, and one piece may use both.
  bool AreNeighbours(int64_t w) const;
};

// A page of host memory; and of a GPU, which large windows should be multiples of.
inline constexpr int64_t kPagedWindowAlignment = 4096;
inline constexpr int64_t kLargePage = int64_t{2} << 20;

class PagedMemory {
 public:
  explicit PagedMemory(PagedShape shape) : shape_(std::move(shape)) {}
  virtual ~PagedMemory() = default;
  PagedMemory(const PagedMemory&) = delete;

  const PagedShape& shape() const { return shape_; }

  // Where pieces find window w. Final: two windows of one slot may share it. All bytes begin as
  // zero.
  virtual void* Address(int64_t w) const = 0;
  // Starts to move window w to its slot, behind the eviction of the window that was there before.
  // Only for windows that are not resident; nothing without slots.
  virtual absl::Status Bring(int64_t w) = 0;
  // Pieces started from now on run once window w has arrived.
  virtual absl::Status Await(int64_t w) = 0;
  // Behind the pieces started so far, starts to move window w back to the host.
  virtual absl::Status Evict(int64_t w) = 0;

  // Of a lent slot, from which the last window was evicted: pieces started from now on run once it
  // has left. Nothing where none was there.
  virtual absl::Status Reclaim(int64_t slot) = 0;

  // As Bring and Await, for a window that will be written: what it held is lost.
  virtual absl::Status Claim(int64_t w) = 0;
  // As Evict, for a window that nobody will read: what it held is lost.
  virtual absl::Status Drop(int64_t w) = 0;

  // Host access wherever the window is. Waits for all pieces and moves.
  virtual absl::Status Read(int64_t w, int64_t offset, void* to, int64_t bytes) = 0;
  virtual absl::Status Write(int64_t w, int64_t offset, const void* from, int64_t bytes) = 0;

 private:
  const PagedShape shape_;
};

}  // namespace qlora::kernels

#endif  // QLORA_KERNELS_PAGED_MEMORY_H_
