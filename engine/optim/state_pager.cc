#include "engine/optim/state_pager.h"

#include <algorithm>

namespace qlora::engine {

absl::Status StatePager::Bring(int64_t w) {
  bytes_in_ += memory_.shape().window_bytes;
  return memory_.Bring(w);
}

absl::Status StatePager::Evict(int64_t w) {
  bytes_out_ += memory_.shape().window_bytes;
  return memory_.Evict(w);
}

absl::Status StatePager::Grow(int64_t slots) {
  const kernels::PagedShape& shape = memory_.shape();
  const int64_t end = std::min({slots, shape.slots, shape.windows - shape.resident});
  for (; ready_ < end; ++ready_) {
    if (absl::Status s = Bring(shape.resident + ready_); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status StatePager::Sweep(absl::FunctionRef<absl::Status(int64_t range)> update) {
  const kernels::PagedShape& shape = memory_.shape();
  if (absl::Status s = Grow(shape.slots); !s.ok()) return s;
  // They give what is still on its way the time to arrive.
  int64_t first = 0;
  const int64_t count = int64_t(ranges_.size());
  for (; first < count && shape.IsResident(ranges_[first].first); ++first) {
    if (absl::Status s = update(first); !s.ok()) return s;
  }
  for (int64_t i = first; i < count; ++i) {
    const int64_t range = ascending_ ? i : count - 1 - (i - first);
    const WindowRange& windows = ranges_[range];
    for (int64_t k = 0; k < windows.count; ++k) {
      if (absl::Status s = memory_.Await(windows.first + k); !s.ok()) return s;
    }
    if (absl::Status s = update(range); !s.ok()) return s;
    for (int64_t k = 0; k < windows.count; ++k) {
      if (absl::Status s = MakeRoom(windows.first + k); !s.ok()) return s;
    }
  }
  if (shape.IsLent()) return Vacate();
  ascending_ = !ascending_;
  return absl::OkStatus();
}

// Window w is updated: its slot is for the next one that wants it in this sweep.
absl::Status StatePager::MakeRoom(int64_t w) {
  const kernels::PagedShape& shape = memory_.shape();
  if (shape.slots == 0) {
    bytes_in_ += shape.window_bytes;
    return Evict(w);
  }
  const int64_t next = ascending_ ? w + shape.slots : w - shape.slots;
  if (next < shape.resident || next >= shape.windows) return absl::OkStatus();
  if (absl::Status s = Evict(w); !s.ok()) return s;
  return Bring(next);
}

absl::Status StatePager::Vacate() {
  const kernels::PagedShape& shape = memory_.shape();
  for (int64_t slot = ready_ - 1; slot >= 0; --slot) {
    // The last window that took this slot.
    const int64_t turns = (shape.windows - 1 - shape.resident - slot) / shape.slots;
    if (absl::Status s = Evict(shape.resident + slot + turns * shape.slots); !s.ok()) return s;
  }
  ready_ = 0;
  return absl::OkStatus();
}

}  // namespace qlora::engine
