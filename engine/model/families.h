// Model families: from a Hugging Face config.json to a ModelSpec. A family is one function here and
// nothing anywhere else.
//
// Both dialects are read: torch_dtype, rope_theta, rope_scaling (Transformers 4) and dtype,
// rope_parameters, layer_types (Transformers 5). Where a file holds both, they must agree.
#ifndef QLORA_ENGINE_MODEL_FAMILIES_H_
#define QLORA_ENGINE_MODEL_FAMILIES_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/io/env.h"
#include "engine/model/model_spec.h"

namespace qlora::engine {

// Reads the text of a config.json: families llama, mistral, qwen2, qwen3. `source` names the file
// in messages. A BadDataError (proto/errors.h) names the key, what was found and what is allowed:
// whatever this engine can't compute exactly is refused here, never ignored.
absl::StatusOr<ModelSpec> ParseModelConfig(absl::string_view config_json,
                                           const std::string& source);

// Adds the eos ids of a generation_config.json's text to spec->eos_ids.
absl::Status AddGenerationConfig(absl::string_view generation_config_json,
                                 const std::string& source, ModelSpec* spec);

// Both for a model folder: config.json must be there, generation_config.json may.
absl::StatusOr<ModelSpec> ReadModelConfig(Env* env, const std::string& folder);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MODEL_FAMILIES_H_
