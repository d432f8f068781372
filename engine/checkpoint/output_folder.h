// The output folder of a run: looked at before training, resumed from, never silently overwritten.
// The run has claimed it (folder_claim.h).

#ifndef QLORA_ENGINE_CHECKPOINT_OUTPUT_FOLDER_H_
#define QLORA_ENGINE_CHECKPOINT_OUTPUT_FOLDER_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/report/console.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// What of the job decides the result, for the message when the next job differs.
inline constexpr char kJobFile[] = "job.textproto";
inline constexpr int64_t kMaxJobBytes = 1 << 20;

// Stands in a folder from a run's begin until all its results are written.
inline constexpr char kUnfinishedFile[] = ".run.unfinished";

bool HoldsUnfinishedRun(Env* env, const std::string& folder);

// Before anything is loaded: tries to write in the folder, removes what interrupted writers left,
// and finds the checkpoint to go on from; empty where the run starts anew. With
// overwrite_output_dir it goes on with this job's only, and only where that run `is_unfinished` or
// lacks steps. Without, a folder with another job's checkpoints (naming what differs), or with a
// model or adapter and no checkpoint, is refused (exit 64). Checkpoints that do not verify are
// named on the console; where there are some and none verifies the run does not start from scratch
// by itself (exit 65). No result that is there is touched.
absl::StatusOr<std::optional<std::string>> CheckOutputFolder(const Setup& setup, bool is_unfinished,
                                                             Console* console);

// When the run is about to begin: with overwrite_output_dir removes the checkpoints of a run that
// it does not go on with, writes job.textproto and kUnfinishedFile.
absl::Status TakeOutputFolder(const Setup& setup, bool is_resumed);
// When all results of the run are there.
absl::Status FinishOutputFolder(const Setup& setup);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_CHECKPOINT_OUTPUT_FOLDER_H_
