// The output folder of a run: claimed before training, resumed from, never silently overwritten.

#ifndef QLORA_ENGINE_OUTPUT_FOLDER_H_
#define QLORA_ENGINE_OUTPUT_FOLDER_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/report/console.h"
#include "engine/setup.h"

namespace qlora::engine {

// Creates the folder where it is missing, checks that it can be written, and finds the checkpoint
// to go on from; empty where the run starts anew. A folder with another job's results is refused
// (exit 64), naming the fields that differ, unless overwrite_output_dir: then its checkpoints are
// removed. Checkpoints that do not verify are named on the console; where there are some and none
// verifies the run does not start from scratch by itself (exit 65).
absl::StatusOr<std::optional<std::string>> ClaimOutputFolder(const Setup& setup, Console* console);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_OUTPUT_FOLDER_H_
