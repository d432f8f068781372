// Which linears a run adapts: as its job says or, where it uses a saved adapter, as that one has
// it.

#ifndef QLORA_ENGINE_SETUP_CHOOSE_TARGETS_H_
#define QLORA_ENGINE_SETUP_CHOOSE_TARGETS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// Fills in `targets` and `lora_size`, once the model is open. Of a saved adapter only the config
// and the shapes are looked at. `problems` takes what the model tells to be wrong with the job.
absl::Status ChooseTargets(Setup* setup, std::vector<std::string>* problems);

// An adapter that started from a base's residual belongs to that base: another is refused. Fills in
// `residual_note`, once the base's hash is known.
absl::Status CheckResidualNote(Setup* setup);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_SETUP_CHOOSE_TARGETS_H_
