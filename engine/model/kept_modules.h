// quantization.keep_in_16_bits: linears that stay in 16 bits although the base is quantized.

#ifndef QLORA_ENGINE_MODEL_KEPT_MODULES_H_
#define QLORA_ENGINE_MODEL_KEPT_MODULES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/model/model_spec.h"

namespace qlora::engine {

// Whether `name` means the linear `module`: its whole name, its first parts ("model.layers.0"), or
// its last parts ("down_proj").
bool NamesModule(const std::string& name, const std::string& module);

// Sets spec->kept_in_16_bits to the linears that `names` mean. InvalidArgument (BadJobError) lists
// every name that means none, with the nearest that would; the spec is then as it was.
absl::Status KeepIn16Bits(absl::Span<const std::string> names, ModelSpec* spec);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MODEL_KEPT_MODULES_H_
