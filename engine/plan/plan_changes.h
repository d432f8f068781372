// What could be changed about a job, each change tried by planning with it.

#ifndef QLORA_ENGINE_PLAN_PLAN_CHANGES_H_
#define QLORA_ENGINE_PLAN_PLAN_CHANGES_H_

#include <string>
#include <vector>

#include "engine/plan/plan.h"
#include "engine/plan/scaling.h"

namespace qlora::engine {

struct PlanChange {
  std::string change;        // "training.optim: PAGED_ADAMW_8BIT"
  int64_t bytes = 0;         // the plan's, with it
  double relative_time = 1;  // seconds per token against the job's as it stands, had it the memory
};
// "mode: QLORA (3.1 GiB, 1.08 times the time)".
std::string Describe(const PlanChange& change);

// The adapters that a job has which says nothing of them.
LoraTargets DefaultTargets(const ModelSpec& spec);

// The changes with which the run fits, the cheapest in time first; where none does alone, several
// in one.
std::vector<PlanChange> FittingChanges(const ModelSpec& spec, const RecordOptions& options,
                                       const kernels::Device& device, const MachineRates& rates,
                                       const PlanLimits& limits, const Network& network = {});

// The longest sequence, up to `most` tokens, of which as many as the job's micro-batch has rows
// fit; 0 where none does.
int64_t LargestSequence(const ModelSpec& spec, const RecordOptions& options,
                        const kernels::Device& device, const PlanLimits& limits, int64_t rows,
                        int64_t most);
// The largest number of rows of `tokens` each in a micro-batch, up to `most`; 0 where none fits.
int64_t LargestBatch(const ModelSpec& spec, const RecordOptions& options,
                     const kernels::Device& device, const PlanLimits& limits, int64_t tokens,
                     int64_t most);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_PLAN_CHANGES_H_
