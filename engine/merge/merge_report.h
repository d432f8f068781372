// What `merge` measured, as text for the console and as files.

#ifndef QLORA_ENGINE_MERGE_MERGE_REPORT_H_
#define QLORA_ENGINE_MERGE_MERGE_REPORT_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "engine/io/env.h"
#include "proto/merge_report.pb.h"

namespace qlora::engine {

std::string MergeText(const proto::MergeReport& report);

// The whole HTML file.
std::string MergeHtml(const proto::MergeReport& report);

// merge.json, merge.html and merge.txt in the folder merge of `output_dir`, which is made; each as
// a whole.
absl::Status WriteMergeReport(Env* env, const std::string& output_dir,
                              const proto::MergeReport& report);
// What an earlier merge wrote there; nothing where it can't be read.
std::optional<proto::MergeReport> ReadMergeReport(Env* env, const std::string& output_dir);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_MERGE_MERGE_REPORT_H_
