// Where the numbers of a step first went bad. A step knows only that its gradients or its loss are
// not finite; by then activations have been overwritten. Randomness is counted and parameters are
// as they were, so the same micro-batch can be run again and watched.

#ifndef QLORA_ENGINE_STEP_FIND_NONFINITE_H_
#define QLORA_ENGINE_STEP_FIND_NONFINITE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "engine/step/execution.h"

namespace qlora::engine {

// Runs the micro-batch whose inputs are staged, its gradients and loss alone, op by op, and says
// which tensor first held a value that is not finite: "layer 3 gate (NaN in row 5, column 17,
// written by linear_forward)", or, where an op has read it from a parameter or frozen weight, that.
// "" where all are finite. Runs to the end all the same: other ranks may gather weights with this
// one. Leaves parameters and states alone and the sums of the step spoiled.
absl::StatusOr<std::string> FindNonFinite(Execution* execution, const TrainPieces& pieces);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_STEP_FIND_NONFINITE_H_
