// How long a step takes by its plan, and what ranks exchange in it.

#ifndef QLORA_ENGINE_PLAN_STEP_TIME_H_
#define QLORA_ENGINE_PLAN_STEP_TIME_H_

#include "engine/plan/plan.h"
#include "engine/plan/scaling.h"
#include "proto/job.pb.h"

namespace qlora::engine {

struct StepTime {
  double seconds = 0;         // on one rank, without what it waits for others
  double memory_seconds = 0;  // of these, in ops that memory bounds
  double link_seconds = 0;    // and waiting for what moves between device and host memory
  Traffic traffic;            // between the ranks, if there are several

  // With what each of so many ranks waits for the others.
  double SecondsOn(int ranks, const Network& network) const {
    return seconds + ExchangeSeconds(ranks, traffic, network);
  }
};

// Of a step of so many micro-batches, whose passes hold as much as `full` full ones. The plan has
// its times by the same rates.
StepTime TimeOfStep(const Plan& plan, const MachineRates& rates, int64_t micro_batches,
                    double full);
// All full.
StepTime TimeOfStep(const Plan& plan, const MachineRates& rates, int64_t micro_batches);

Network NetworkOf(const proto::Plan& plan);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_STEP_TIME_H_
