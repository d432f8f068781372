// The work that a training step cannot do without.

#ifndef QLORA_ENGINE_PLAN_USEFUL_FLOPS_H_
#define QLORA_ENGINE_PLAN_USEFUL_FLOPS_H_

#include <cstdint>

#include "engine/model/model_spec.h"

namespace qlora::engine {

// FLOP of one step if nothing is recomputed: per token 4 for each frozen and 6 for each trained
// matmul weight, and those of attention over `attention_pairs` visible pairs of a query and a key.
// Divided by the machine's matmul rate this is the step's speed of light, in seconds.
double UsefulFlops(const ModelSpec& spec, bool trains_base, int64_t adapter_parameters,
                   int64_t tokens, double attention_pairs);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_USEFUL_FLOPS_H_
