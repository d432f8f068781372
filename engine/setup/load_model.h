// The model of a run, from where the job says into the run's memory.

#ifndef QLORA_ENGINE_SETUP_LOAD_MODEL_H_
#define QLORA_ENGINE_SETUP_LOAD_MODEL_H_

#include <string>

#include "absl/status/status.h"
#include "engine/progress.h"
#include "engine/report/console.h"
#include "engine/setup/setup.h"
#include "engine/step/execution.h"

namespace qlora::engine {

// Fills the run's weights: from the checkpoint, or at random; adapters at their start, from
// init_from, or from `adapter`. Progress goes to `progress`, where that is empty to the console, as
// does what the quantize cache did.
absl::Status LoadModel(const Setup& setup, const std::string& adapter, Execution* execution,
                       Console* console, const Progress& progress = nullptr);

// The adapter of another course over the same base: at its start, or from `adapter`.
absl::Status StartAdapter(const Setup& setup, const std::string& adapter, Execution* execution,
                          int64_t course);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_SETUP_LOAD_MODEL_H_
