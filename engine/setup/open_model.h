// The job's model and tokenizer, opened, and checked against the job and each other.

#ifndef QLORA_ENGINE_SETUP_OPEN_MODEL_H_
#define QLORA_ENGINE_SETUP_OPEN_MODEL_H_

#include "absl/status/status.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// Fills in the folders, `spec` and `model`; of a new model, and of one without weights that is only
// planned for, there is no `model`.
absl::Status OpenModel(Setup* setup);

// None where the job can do without: its input is token ids, or it has none.
absl::Status OpenTokenizer(Setup* setup);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_SETUP_OPEN_MODEL_H_
