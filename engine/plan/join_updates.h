// Updates of neighbouring windows as one op each: a launch for every range of states that is on the
// device at a time, not one for every window.

#ifndef QLORA_ENGINE_PLAN_JOIN_UPDATES_H_
#define QLORA_ENGINE_PLAN_JOIN_UPDATES_H_

#include "engine/record/record.h"
#include "kernels/paged_memory.h"

namespace qlora::engine {

// Rewrites the updates of a run whose states lie in `shape`. Two windows are joined where they are
// of one course and shape.AreNeighbours. The pieces of all but the first window of a range are left
// empty. No byte of a result changes.
void JoinUpdates(const kernels::PagedShape& shape, RecordedRun* run);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_JOIN_UPDATES_H_
