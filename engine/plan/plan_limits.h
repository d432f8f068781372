// What memory a run may use: by the job, the machine, and what this process holds already.

#ifndef QLORA_ENGINE_PLAN_PLAN_LIMITS_H_
#define QLORA_ENGINE_PLAN_PLAN_LIMITS_H_

#include <string>

#include "absl/status/statusor.h"
#include "engine/plan/plan.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// Asked last of all that stands before the plan: data, tokenizer and model are open, `setup.record`
// is chosen. Everything but `setup.limits` is read. `writes_cache`: the 4-bit base is written out.
absl::StatusOr<PlanLimits> LimitsOf(const Setup& setup, bool writes_cache);

// Where what is written to `path` will lie, before that is made: it, or the nearest folder above it
// that is there.
std::string PresentFolder(Env* env, const std::string& path);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_PLAN_LIMITS_H_
