#include "engine/io/atomic_file.h"
#include "engine/report/plan_output.h"
#include "engine/report/report_json.h"

namespace qlora::engine {

absl::Status WritePlanReport(Env* env, const std::string& folder, const proto::PlanReport& report) {
  const absl::StatusOr<std::string> json = ReportJson(report);
  if (!json.ok()) return json.status();
  if (absl::Status s = env->CreateFolders(folder); !s.ok()) return s;
  for (const auto& [name, contents] :
       {std::pair("plan_report.txt", PlanReportText(report)), std::pair("plan_report.json", *json),
        std::pair("plan_report.html", PlanReportHtml(report))}) {
    if (absl::Status s = AtomicWriteFile(env, JoinPath(folder, name), contents); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
