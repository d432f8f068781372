// What a run has trained, copied to host memory: one moment of it, while the run goes on.

#ifndef QLORA_ENGINE_CHECKPOINT_STATE_COPY_H_
#define QLORA_ENGINE_CHECKPOINT_STATE_COPY_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/record/storage.h"
#include "engine/step/execution.h"
#include "kernels/buffer.h"

namespace qlora::engine {

// As Execution::Read, of any view of parameters and their states: from the run's own memory, or
// from a copy.
using StateReader = std::function<absl::Status(kernels::ConstTensor view, void* to, int64_t bytes)>;
StateReader ReaderOf(Execution* execution);

class StateCopy {
 public:
  // Bytes that a copy takes: the values that forward reads and the optimizer's states.
  static int64_t BytesOf(const Storage& storage);
  // Memory for copies of this run's state; it is touched by the first one. ResourceExhausted where
  // there is none.
  static absl::StatusOr<StateCopy> Create(const Storage& storage);

  // Copies the state as it is after everything that the device was told so far.
  absl::Status Take(Execution* execution);
  // A StateReader. Any thread, but not during Take.
  absl::Status Read(kernels::ConstTensor view, void* to, int64_t bytes) const;

 private:
  struct Region {
    kernels::ConstTensor view;  // of the program
    int64_t at = 0;             // bytes from the begin of the memory
  };
  static std::vector<Region> RegionsOf(const Storage& storage);

  std::vector<Region> regions_;
  kernels::Buffer memory_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_CHECKPOINT_STATE_COPY_H_
