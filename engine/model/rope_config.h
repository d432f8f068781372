// The rotary embedding part of a config.json, in both dialects.
#ifndef QLORA_ENGINE_MODEL_ROPE_CONFIG_H_
#define QLORA_ENGINE_MODEL_ROPE_CONFIG_H_

#include <cstdint>

#include "engine/model/config_reader.h"
#include "engine/model/model_spec.h"

namespace qlora::engine {

// Transformers 4: rope_theta, rope_scaling {rope_type or, older, type; ...}, partial_rotary_factor.
// Transformers 5: rope_parameters {rope_type, rope_theta, ...}. Where a file holds both they must
// agree. Types default, linear, llama3 and yarn; a key that none of these reads is refused, as it
// may change what the type means. Faults go to `reader`.
RopeSpec ReadRope(ConfigReader* reader, int64_t head_size, int64_t max_positions);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MODEL_ROPE_CONFIG_H_
