// All that command `plan` finds out, as one message: for the terminal, for machines, and as a page.

#ifndef QLORA_ENGINE_PLAN_PLAN_REPORT_H_
#define QLORA_ENGINE_PLAN_PLAN_REPORT_H_

#include <vector>

#include "absl/status/statusor.h"
#include "engine/plan/plan.h"
#include "engine/plan/planned_run.h"
#include "proto/plan_report.pb.h"

namespace qlora::engine {

// Rows of a micro-batch that are looked at; more never pay.
inline constexpr int64_t kMostRows = 1024;

// `plan` is BestPlan of the run; `past_runs` are this device's. With plan.explore other plans are
// made beside it: changes, the largest sequence and batch, other modes.
absl::StatusOr<proto::PlanReport> MakePlanReport(const PlannedRun& run, const Plan& plan,
                                                 const std::vector<proto::SpeedRecord>& past_runs);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_PLAN_PLAN_REPORT_H_
