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

absl::Status StatePager::Prepare() {
  if (is_prepared_) return absl::OkStatus();
  is_prepared_ = true;
  const kernels::PagedShape& shape = memory_.shape();
  const int64_t end = std::min(shape.resident + shape.slots, shape.windows);
  for (int64_t w = shape.resident; w < end; ++w) {
    if (absl::Status s = Bring(w); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status StatePager::Sweep(absl::FunctionRef<absl::Status(int64_t window)> update) {
  if (absl::Status s = Prepare(); !s.ok()) return s;
  const kernels::PagedShape& shape = memory_.shape();
  // They give what is still on its way the time to arrive.
  for (int64_t w = 0; w < shape.resident; ++w) {
    if (absl::Status s = update(w); !s.ok()) return s;
  }
  const int64_t count = shape.windows - shape.resident;
  const int64_t step = ascending_ ? 1 : -1;
  int64_t w = ascending_ ? shape.resident : shape.windows - 1;
  for (int64_t i = 0; i < count; ++i, w += step) {
    if (absl::Status s = memory_.Await(w); !s.ok()) return s;
    if (absl::Status s = update(w); !s.ok()) return s;
    if (shape.slots == 0) {
      bytes_in_ += shape.window_bytes;
      if (absl::Status s = Evict(w); !s.ok()) return s;
    } else if (i + shape.slots < count) {
      if (absl::Status s = Evict(w); !s.ok()) return s;
      if (absl::Status s = Bring(w + step * shape.slots); !s.ok()) return s;
    }
  }
  ascending_ = !ascending_;
  return absl::OkStatus();
}

}  // namespace qlora::engine
