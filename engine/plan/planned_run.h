// What a plan is of: one run, and everything that it trains.

#ifndef QLORA_ENGINE_PLAN_PLANNED_RUN_H_
#define QLORA_ENGINE_PLAN_PLANNED_RUN_H_

#include <string>
#include <vector>

#include "engine/setup/setup.h"

namespace qlora::engine {

struct PlannedRun {
  // Of each that is trained; all outlive this. The first one's record and limits are the run's.
  std::vector<const Setup*> setups;
  // Of all of them; empty where the job names none.
  std::string output_dir;

  const Setup& setup() const { return *setups.front(); }
  bool is_sweep() const { return setups.size() > 1; }
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_PLANNED_RUN_H_
