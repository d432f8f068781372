// An adapter folder that is used with the modules of a run.

#ifndef QLORA_ENGINE_LORA_SAVED_ADAPTER_H_
#define QLORA_ENGINE_LORA_SAVED_ADAPTER_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/io/adapter_file.h"
#include "engine/lora/targets.h"

namespace qlora::engine {

// ReadAdapter of a folder that must hold exactly `modules`, in their shapes and in this order.
// Ranks and scales are not looked at.
absl::StatusOr<LoadedAdapter> ReadAdapterOf(Env* env, const std::string& folder,
                                            absl::Span<const AdaptedModule> modules);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_LORA_SAVED_ADAPTER_H_
