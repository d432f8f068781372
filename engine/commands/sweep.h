// Command `sweep`: several adapters trained in one run over one base, and the rank report.

#ifndef QLORA_ENGINE_COMMANDS_SWEEP_H_
#define QLORA_ENGINE_COMMANDS_SWEEP_H_

#include "absl/status/status.h"
#include "engine/comm/stop_request.h"
#include "engine/commands/sweep_setup.h"
#include "engine/report/console.h"

namespace qlora::engine {

// Trains every adapter as Train does, each into a folder of its own below output_dir, and writes
// sweep_report.txt, .json and .html beside them. The same command goes on from each adapter's
// newest checkpoint.
absl::Status Sweep(const SweepSetup& sweep, Console* console, StopFlag* stop);

// What a sweep would take; allocates nothing.
absl::Status ShowSweepPlan(const SweepSetup& sweep, Console* console);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_SWEEP_H_
