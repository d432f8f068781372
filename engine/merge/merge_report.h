// What `merge` measured, as text for the console and as files.

#ifndef QLORA_ENGINE_MERGE_MERGE_REPORT_H_
#define QLORA_ENGINE_MERGE_MERGE_REPORT_H_

#include <string>

#include "absl/status/status.h"
#include "engine/io/env.h"
#include "proto/merge_report.pb.h"

namespace qlora::engine {

std::string MergeText(const proto::MergeReport& report);

// The whole HTML file.
std::string MergeHtml(const proto::MergeReport& report);

// merge.json and merge.html in `folder`, which is made; each as a whole.
absl::Status WriteMergeReport(Env* env, const std::string& folder,
                              const proto::MergeReport& report);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MERGE_MERGE_REPORT_H_
