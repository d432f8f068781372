// Whether what a run has left is still what it wrote.

#ifndef QLORA_ENGINE_COMMANDS_VERIFY_H_
#define QLORA_ENGINE_COMMANDS_VERIFY_H_

#include <string>

#include "absl/status/status.h"
#include "engine/io/env.h"
#include "engine/report/console.h"

namespace qlora::engine {

// A line for each checkpoint, by its manifest and as `train` would look at it, and for each result
// file, by the folder's SHA256SUMS: of one such folder, of an output folder, or of those of all
// adapters below a sweep's. DataLoss where anything is damaged or lacks; else an I/O error where
// something can't be read, which says nothing of what it holds; MissingFile where there is nothing
// to check.
absl::Status Verify(Env* env, const std::string& folder, Console* console);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_VERIFY_H_
