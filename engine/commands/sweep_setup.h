// What stands before a sweep: the setup of each adapter over one base, and the run that they make
// together.

#ifndef QLORA_ENGINE_COMMANDS_SWEEP_SETUP_H_
#define QLORA_ENGINE_COMMANDS_SWEEP_SETUP_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/plan/planned_run.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

struct SweepSetup {
  struct Adapter {
    std::string name;
    std::unique_ptr<Setup> setup;
    int64_t round = 0;  // with sweep.raise_rank the place of its rank, else 0
    int64_t group = 0;  // in its round, of those whose rows go through the model in one pass
  };
  proto::Job job;
  // As proto::SweepJobs. The first one's setup owns the open model; its record and limits are those
  // of the whole run.
  std::vector<Adapter> adapters;

  // "r2, r8, theirs".
  std::string Names() const;
  // For a plan of it; borrows the setups.
  PlannedRun planned() const;
};

// `job` is checked for `command`, which is kSweep or kPlan, and has its defaults. What is wrong
// with the adapters' jobs is told of all at once, each behind the path that asked for it.
absl::StatusOr<std::unique_ptr<SweepSetup>> PrepareSweep(const proto::Job& job,
                                                         proto::Command command, Env* env);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMMANDS_SWEEP_SETUP_H_
