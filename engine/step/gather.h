// Weights that ranks share out, gathered ahead of their use, as a rewrite of the program: every run
// of ops over one group's window reads a transient buffer instead, which is filled from all ranks
// while the ops of the group before it run. Two groups are whole at a time; placed by lifetime,
// they share memory with activations.

#ifndef QLORA_ENGINE_STEP_GATHER_H_
#define QLORA_ENGINE_STEP_GATHER_H_

#include "absl/types/span.h"
#include "engine/record/program.h"
#include "engine/record/storage.h"

namespace qlora::engine {

// Rewrites all pieces. On all ranks the same groups are gathered in the same order, whatever each
// of them recomputes.
void GatherAhead(Program* program, absl::Span<const GatheredGroup> groups);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_STEP_GATHER_H_
