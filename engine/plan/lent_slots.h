// Slots of paged optimizer states in memory that activations leave free: the resident budget of the
// states shrinks before activations need the memory and grows again as backward frees it, so that
// the device needs the most of (activations + states on it) over time, not the sum of the most of
// each.
//
// The arena of transient buffers is cut into slots of a window's size. A slot is lent in a step's
// last micro-batch behind the last op that uses any of its bytes, holds windows during the update,
// and is wanted back before the first op of any piece that uses them again. Moves stand at the
// borders of phases, of which each pass of a micro-batch has kLendPhases: every move cuts what is
// captured as one graph.

#ifndef QLORA_ENGINE_PLAN_LENT_SLOTS_H_
#define QLORA_ENGINE_PLAN_LENT_SLOTS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/plan/placement.h"
#include "engine/record/record.h"

namespace qlora::engine {

inline constexpr int kLendPhases = 8;

struct LentSlot {
  int64_t offset = 0;  // in the arena
  int64_t from = 0;    // op of the micro-batch before which it is lent
};

// All slots that can be lent, those first that are lent first, neighbours one behind the other.
// What pieces of the update use is not lent.
std::vector<LentSlot> FindLentSlots(const RecordedRun& run, const Placement& placement,
                                    int64_t window_bytes);

// Adds the moves kLend and kReclaim of these slots, in the order found, to the pieces of the run.
void LendSlots(absl::Span<const LentSlot> slots, const Placement& placement, int64_t window_bytes,
               RecordedRun* run);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_LENT_SLOTS_H_
