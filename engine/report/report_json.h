// Reports as JSON.

#ifndef QLORA_ENGINE_REPORT_REPORT_JSON_H_
#define QLORA_ENGINE_REPORT_REPORT_JSON_H_

#include <google/protobuf/message.h>

#include <string>

#include "absl/status/statusor.h"

namespace qlora::engine {

// Protobuf's JSON, fields in their order, two spaces of indent. An infinite number is "Infinity".
absl::StatusOr<std::string> ReportJson(const google::protobuf::Message& report);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_REPORT_REPORT_JSON_H_
