#include "engine/checkpoint/output_names.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/match.h"
#include "engine/checkpoint/output_folder.h"
#include "engine/checkpoint/result_sums.h"
#include "engine/io/adapter_file.h"
#include "engine/io/model_files.h"
#include "engine/report/sidecar.h"

namespace qlora::engine {
namespace {

constexpr const char* kNames[] = {
    // Folders.
    "runs", "drift", "merge", "quantized",
    // Files.
    kAdapterConfigFile, kAdapterModelFile, kJobFile, kResultSumsFile, kSidecarFile,
    "loss_curve.svg", "metrics.jsonl", "residual_init.json", "trainer_state.json"};
constexpr const char* kBeginnings[] = {".", "checkpoint-", "plan_report.", "sweep_report."};

}  // namespace

bool IsOutputName(absl::string_view name) {
  const auto begins = [&](absl::string_view beginning) {
    return absl::StartsWith(name, beginning);
  };
  return IsModelFile(name) ||
         std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames) ||
         std::any_of(std::begin(kBeginnings), std::end(kBeginnings), begins);
}

}  // namespace qlora::engine
