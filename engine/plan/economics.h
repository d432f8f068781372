// What an adapter costs and saves, beside training all weights and beside a longer prompt.

#ifndef QLORA_ENGINE_PLAN_ECONOMICS_H_
#define QLORA_ENGINE_PLAN_ECONOMICS_H_

#include "absl/status/statusor.h"
#include "engine/plan/planned_run.h"
#include "proto/plan_report.pb.h"

namespace qlora::engine {

// Mean tokens of a prompt as a call to the model sends it, with economics.instruction and without,
// over the samples of all adapters that have a prompt. Zeros without such samples, a tokenizer or
// an instruction. Errors are the instruction's: it must be UTF-8.
struct PromptTokens {
  double with_instruction = 0, without = 0;
};
absl::StatusOr<PromptTokens> MeasurePrompts(const PlannedRun& run);

// `plan` is the run's, `run_seconds` its predicted training, 0 where unknown; `modes`: whether to
// plan the other modes too, each as this job with another `mode`.
absl::StatusOr<proto::PlanReport::Economics> ReckonEconomics(const PlannedRun& run,
                                                             const Plan& plan, double run_seconds,
                                                             bool modes);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_ECONOMICS_H_
