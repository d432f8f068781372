// StatePager: decides when windows of the paged optimizer states move, so that an update finds each
// on the device and the device never holds more than it was given.
//
// An update is a sweep over all windows. Each sweep runs against the direction of the one before:
// it begins with the windows that the last one left on the device, as many as there are slots, and
// while those are updated the next ones arrive. That moves 2 · (windows − resident − slots) windows
// a sweep, one direction beside the other, and no order moves less.

#ifndef QLORA_ENGINE_OPTIM_STATE_PAGER_H_
#define QLORA_ENGINE_OPTIM_STATE_PAGER_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/paged_memory.h"

namespace qlora::engine {

class StatePager {
 public:
  // `memory` must outlive it.
  explicit StatePager(kernels::PagedMemory* memory) : memory_(*memory) {}

  // Starts to bring the windows with which the next sweep begins, where they are not there yet.
  // Without waiting: called while backward runs.
  absl::Status Prepare();
  // Calls `update` for every window once, between its arrival and its departure. `update` starts
  // work and does not wait for it.
  absl::Status Sweep(absl::FunctionRef<absl::Status(int64_t window)> update);

  // Bytes moved over the bus since the pager was made. Windows that pieces reach in host memory
  // count once a direction and sweep.
  int64_t bytes_in() const { return bytes_in_; }
  int64_t bytes_out() const { return bytes_out_; }

 private:
  absl::Status Bring(int64_t w);
  absl::Status Evict(int64_t w);

  kernels::PagedMemory& memory_;
  bool is_prepared_ = false;
  bool ascending_ = true;
  int64_t bytes_in_ = 0, bytes_out_ = 0;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_OPTIM_STATE_PAGER_H_
