// The commands besides `train`. Each prints its results on the console.

#ifndef QLORA_ENGINE_COMMANDS_COMMANDS_H_
#define QLORA_ENGINE_COMMANDS_COMMANDS_H_

#include "absl/status/status.h"
#include "engine/plan/planned_run.h"
#include "engine/report/console.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// What training would take, on this machine or on the card that the job names; allocates nothing.
// Writes the report to output_dir where the job asks for it. DoesNotFit, behind all that, where it
// does not.
absl::Status ShowPlan(const PlannedRun& run, Console* console);

// The data as the model will see it, the model's tensors, the targets matched.
absl::Status Inspect(const Setup& setup, Console* console);

// Loss, perplexity and, where asked for, exact match on a file; logits of pretokenized input to a
// file.
absl::Status Evaluate(const Setup& setup, Console* console);

// Text from the job's prompt or messages.
absl::Status GenerateText(const Setup& setup, Console* console);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_COMMANDS_H_
