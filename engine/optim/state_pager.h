// StatePager: decides when windows of the paged optimizer states move, so that an update finds each
// on the device and the device never holds more than it was given.
//
// An update is a sweep over all windows. Where the slots are the paged memory's own, each sweep
// runs against the direction of the one before: it begins with the windows that the last one left
// on the device, as many as there are slots, and while those are updated the next ones arrive. That
// moves 2 · (windows − resident − slots) windows a sweep, one direction beside the other, and no
// order moves less.
//
// Where the slots are lent by the activations, the budget follows the phases of a step: it grows
// while the last micro-batch's backward frees memory, and the first windows arrive there; behind
// the update all leave again, beside the next forward pass. The slots that are lent last, which
// forward wants first, are vacated first. That moves 2 · (windows − resident) windows, none of
// which takes memory of its own.

#ifndef QLORA_ENGINE_OPTIM_STATE_PAGER_H_
#define QLORA_ENGINE_OPTIM_STATE_PAGER_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/paged_memory.h"

namespace qlora::engine {

// Windows [first, first + count), which are updated together.
struct WindowRange {
  int64_t first = 0, count = 1;
};

class StatePager {
 public:
  // `ranges` are all windows, in order; those of a range must be there at the same time:
  // PagedShape::AreNeighbours. `memory` must outlive it.
  StatePager(kernels::PagedMemory* memory, std::vector<WindowRange> ranges)
      : memory_(*memory), ranges_(std::move(ranges)) {}

  // The device has room for so many windows beside the resident ones: starts to bring those with
  // which the next sweep begins, where they are not there yet. Without waiting: called while
  // backward runs.
  absl::Status Grow(int64_t slots);
  // Calls `update` for every range once, between the arrival and the departure of its windows.
  // `update` starts work and does not wait for it. By now the device must have room for all slots.
  absl::Status Sweep(absl::FunctionRef<absl::Status(int64_t range)> update);

  // Bytes moved over the bus since the pager was made. Windows that pieces reach in host memory
  // count once a direction and sweep.
  int64_t bytes_in() const { return bytes_in_; }
  int64_t bytes_out() const { return bytes_out_; }

 private:
  absl::Status Bring(int64_t w);
  absl::Status Evict(int64_t w);
  absl::Status MakeRoom(int64_t w);
  absl::Status Vacate();

  kernels::PagedMemory& memory_;
  const std::vector<WindowRange> ranges_;
  int64_t ready_ = 0;  // slots that hold, or will soon, what the next sweep begins with
  bool ascending_ = true;
  int64_t bytes_in_ = 0, bytes_out_ = 0;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_OPTIM_STATE_PAGER_H_
