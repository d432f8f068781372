#include <google/protobuf/util/json_util.h>

#include "engine/io/atomic_file.h"
#include "engine/report/plan_output.h"

namespace qlora::engine {

absl::Status WritePlanReport(Env* env, const std::string& folder, const proto::PlanReport& report) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(report, &json, options).ok()) {
    return absl::InternalError("the plan's report cannot be written as JSON");
  }
  if (absl::Status s = env->CreateFolders(folder); !s.ok()) return s;
  for (const auto& [name, contents] :
       {std::pair("plan_report.txt", PlanReportText(report)), std::pair("plan_report.json", json),
        std::pair("plan_report.html", PlanReportHtml(report))}) {
    if (absl::Status s = AtomicWriteFile(env, JoinPath(folder, name), contents); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
