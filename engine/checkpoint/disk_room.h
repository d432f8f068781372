// What a run is going to write, and whether its disk has room for it: told at the start, not after
// the steps that a full disk would cost.

#ifndef QLORA_ENGINE_CHECKPOINT_DISK_ROOM_H_
#define QLORA_ENGINE_CHECKPOINT_DISK_ROOM_H_

#include <cstdint>
#include <string>

#include "engine/io/env.h"
#include "engine/plan/plan.h"
#include "engine/plan/planned_run.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// Bytes, by the blocks of a usual file system; logs, which are small, are not counted.
struct DiskNeed {
  int64_t checkpoints = 0;  // more than lie there now, when most of them do
  int64_t checkpoint_bytes = 0;
  int64_t result_bytes = 0;
  int64_t paged_bytes = 0;  // of optimizer states that memory has no room for

  int64_t Total() const { return checkpoint_bytes + result_bytes + paged_bytes; }
  DiskNeed& operator+=(const DiskNeed& other);
};

// What one course of a planned run needs from `steps_done` on.
DiskNeed NeedOf(const Setup& setup, const Plan& plan, int64_t course, int64_t steps_done);

// The same of all that a run trains, from its first step.
DiskNeed NeedOf(const PlannedRun& run, const Plan& plan);

// "" where the file system of `folder`, which need not be there yet, has room or does not say how
// much it has; else what is needed, what there is, and what to do.
std::string DescribeShortage(Env* env, const std::string& folder, const DiskNeed& need);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_CHECKPOINT_DISK_ROOM_H_
