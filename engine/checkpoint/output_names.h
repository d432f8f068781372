// The names in output_dir that the commands give to what they write there, so that nothing else is
// put where one of them will go.

#ifndef QLORA_ENGINE_CHECKPOINT_OUTPUT_NAMES_H_
#define QLORA_ENGINE_CHECKPOINT_OUTPUT_NAMES_H_

#include "absl/strings/string_view.h"

namespace qlora::engine {

// checkpoint-<step>, runs, drift, merge, quantized, the result's files, reports, and whatever is
// hidden. A sweep's folders, which the job names, are not among them.
bool IsOutputName(absl::string_view name);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_CHECKPOINT_OUTPUT_NAMES_H_
