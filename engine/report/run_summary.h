// The lines that a run begins with.

#ifndef QLORA_ENGINE_REPORT_RUN_SUMMARY_H_
#define QLORA_ENGINE_REPORT_RUN_SUMMARY_H_

#include <string>

#include "engine/plan/plan.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// Model, device, data, what is trained, the table of targets.
std::string StartSummary(const Setup& setup);
// The plan's table and the time that it predicts for the whole run.
std::string PlanSummary(const Setup& setup, const Plan& plan);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_RUN_SUMMARY_H_
