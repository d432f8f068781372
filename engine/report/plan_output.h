// A plan's report for people: as lines, and as a page.

#ifndef QLORA_ENGINE_REPORT_PLAN_OUTPUT_H_
#define QLORA_ENGINE_REPORT_PLAN_OUTPUT_H_

#include <string>

#include "absl/status/status.h"
#include "engine/io/env.h"
#include "proto/plan_report.pb.h"

namespace qlora::engine {

std::string PlanReportText(const proto::PlanReport& report);
std::string PlanReportHtml(const proto::PlanReport& report);

// "900 tokens"; where memory is not what ends it, "2,048 tokens, as many as the model takes".
std::string LargestSequenceText(const proto::PlanReport& report);
// "37 rows"; where not all that fit were looked at, "1,024 rows or more".
std::string LargestBatchText(const proto::PlanReport& report);

// plan_report.txt, .json (proto/plan_report.proto) and .html in `folder`, which is made if it is
// not there.
absl::Status WritePlanReport(Env* env, const std::string& folder, const proto::PlanReport& report);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_PLAN_OUTPUT_H_
