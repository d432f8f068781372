// Whether what a run has left is still what it wrote.

#ifndef QLORA_ENGINE_COMMANDS_VERIFY_H_
#define QLORA_ENGINE_COMMANDS_VERIFY_H_

#include <string>

#include "absl/status/status.h"
#include "engine/io/env.h"
#include "engine/report/console.h"

namespace qlora::engine {

// A line for each checkpoint, by its manifest and as `train` would look at it, for each model that
// `merge` or `quantize` wrote, by its manifest, and for each result file, by the folder's
// SHA256SUMS: of one such folder, or of an output folder and those one deeper, as a sweep has them.
// DataLoss where anything is damaged or lacks; else an I/O error where something can't be read,
// which says nothing of what it holds; MissingFile where there is nothing to check.
absl::Status Verify(Env* env, const std::string& folder, Console* console);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_VERIFY_H_
