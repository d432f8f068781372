// The drift report as one HTML file.

#ifndef QLORA_ENGINE_DRIFT_DRIFT_HTML_H_
#define QLORA_ENGINE_DRIFT_DRIFT_HTML_H_

#include <string>

#include "proto/drift_report.pb.h"

namespace qlora::engine {

std::string DriftHtml(const proto::DriftReport& report);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_DRIFT_HTML_H_
