// How long work tells of itself, and how it is stopped.

#ifndef QLORA_ENGINE_PROGRESS_H_
#define QLORA_ENGINE_PROGRESS_H_

#include <functional>

#include "absl/status/status.h"

namespace qlora::engine {

// Called between tensors, layers or batches with the share that is done, from 0 to 1, and always by
// the thread that began the work. An error ends the work, with that error. May be empty.
using Progress = std::function<absl::Status(double share)>;

inline absl::Status Tell(const Progress& progress, double share) {
  return progress ? progress(share) : absl::OkStatus();
}

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PROGRESS_H_
