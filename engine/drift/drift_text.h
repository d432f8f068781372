// What was measured, as messages, as text for the console, and as JSON.

#ifndef QLORA_ENGINE_DRIFT_DRIFT_TEXT_H_
#define QLORA_ENGINE_DRIFT_DRIFT_TEXT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/drift/measure_weights.h"
#include "proto/drift_report.pb.h"

namespace qlora::engine {

// "NF4", "FP4 E2M1", "FP4 E3M0", "INT4".
const char* NameOf(quant::QuantType type);
// "NF4, double quantization, blocks of 64".
std::string Describe(const quant::QuantSpec& spec);

proto::WeightErrorReport WeightErrorReportOf(const std::string& name, const WeightError& error);
proto::QuantizationReport QuantizationReportOf(const quant::QuantSpec& spec, double outlier_factor,
                                               const std::vector<NamedWeightError>& errors);

// A line for each weight, those of one kind summed up where there are more than fit a screen.
std::string WeightTable(const proto::QuantizationReport& report);
// The whole report.
std::string DriftText(const proto::DriftReport& report);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_DRIFT_TEXT_H_
