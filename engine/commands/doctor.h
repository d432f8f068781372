// What this machine can do for a job, and what it lacks.

#ifndef QLORA_ENGINE_COMMANDS_DOCTOR_H_
#define QLORA_ENGINE_COMMANDS_DOCTOR_H_

#include "absl/status/status.h"
#include "engine/report/console.h"

namespace qlora::engine {

// A line for each thing that a run depends on: instruction sets, cores, memory, measured rates and
// what predictions by them were worth, the GPU and its libraries, MPI, the system's limits, each
// with the job field that it decides. What is missing is said and is no error; errors are those of
// measuring.
absl::Status Doctor(Console* console);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_DOCTOR_H_
