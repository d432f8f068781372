// A training run before its first step: planned, loaded, and every course where it begins.

#ifndef QLORA_ENGINE_COMMANDS_PREPARED_RUN_H_
#define QLORA_ENGINE_COMMANDS_PREPARED_RUN_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/folder_claim.h"
#include "engine/commands/course.h"
#include "engine/commands/train.h"
#include "engine/plan/plan.h"
#include "engine/step/integrity.h"

namespace qlora::engine {

struct PreparedRun {
  std::vector<std::unique_ptr<FolderClaim>> claims;  // on the first rank; last to go
  Plan plan;
  std::unique_ptr<Execution> execution;
  std::vector<std::unique_ptr<Course>> courses;  // as the members
  std::optional<Integrity> integrity;
};

// Plans the run, with the kernels of the checkpoint that it goes on from or of the first rank, and
// loads model and adapters. All ranks come back together. `together` must outlive the result.
absl::StatusOr<std::unique_ptr<PreparedRun>> PrepareRun(const Together& together, Console* console);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_PREPARED_RUN_H_
