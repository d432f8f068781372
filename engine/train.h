// Command `train`: from a job to an adapter.

#ifndef QLORA_ENGINE_TRAIN_H_
#define QLORA_ENGINE_TRAIN_H_

#include <csignal>

#include "absl/status/status.h"
#include "engine/report/console.h"
#include "engine/setup.h"

namespace qlora::engine {

// Trains to the last step, resuming from the newest checkpoint in output_dir that verifies, and
// writes the results there. Looks at `*stop_signal` after every step: where it is not 0 the state
// is saved and the status is Stopped (exit 130, 143).
absl::Status Train(const Setup& setup, Console* console,
                   const volatile std::sig_atomic_t* stop_signal);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TRAIN_H_
