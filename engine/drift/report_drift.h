// Command `drift`: what 4 bits cost on the user's data, and what takes some of it back.

#ifndef QLORA_ENGINE_DRIFT_REPORT_DRIFT_H_
#define QLORA_ENGINE_DRIFT_REPORT_DRIFT_H_

#include "absl/status/status.h"
#include "engine/report/console.h"
#include "engine/setup/setup.h"

namespace qlora::engine {

// Measures, prints the report, and writes it to output_dir/drift as drift.json
// (proto/drift_report), with what drift.apply_* asks for beside it:
//   keep_in_16_bits.textproto  a quantization message that keeps the worst layers in 16 bits
//   residual_init/             an adapter for lora.init_from
absl::Status ReportDrift(const Setup& setup, Console* console);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DRIFT_REPORT_DRIFT_H_
