#include "engine/drift/quantize_base.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/folder_claim.h"
#include "engine/drift/drift_text.h"
#include "engine/drift/measure_weights.h"
#include "engine/input_error.h"
#include "engine/io/atomic_file.h"
#include "engine/model/prequantized.h"
#include "engine/report/report_json.h"
#include "engine/setup/load_model.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

constexpr char kFolder[] = "quantized";
constexpr char kErrorFile[] = "quantization_error.json";

absl::Status CheckFolder(const Setup& setup, const std::string& folder) {
  if (setup.job.overwrite_output_dir()) return absl::OkStatus();
  if (!setup.env->Exists(JoinPath(folder, "config.json"))) return absl::OkStatus();
  return proto::BadJobError(
      absl::StrCat("output_dir: ", folder,
                   " holds a model already; give another output_dir, or set overwrite_output_dir: "
                   "true to replace it"));
}

}  // namespace

absl::Status QuantizeBase(const Setup& setup, Console* console, StopSignal stop_signal) {
  if (absl::Status s = CheckBitsandbytesHas(setup.record.storage.quant); !s.ok()) return s;
  const std::string folder = JoinPath(setup.job.output_dir(), kFolder);
  const absl::StatusOr<std::unique_ptr<FolderClaim>> claim =
      FolderClaim::Take(setup.env, folder, console);
  if (!claim.ok()) return claim.status();
  if ((*claim)->is_locked()) {
    if (absl::Status s = CleanTemporaries(setup.env, folder); !s.ok()) {
      return CannotWriteFolder(folder, s);
    }
  }
  if (absl::Status s = CheckFolder(setup, folder); !s.ok()) return s;
  const std::string anew = absl::StrCat("stopped; the same command writes ", folder, " anew");
  PlanLimits limits = setup.limits;
  if (setup.device->info().is_host) {
    int64_t largest = 0;
    for (const WeightRow& row : WeightRows(setup.spec)) largest = std::max(largest, row.Count());
    const quant::QuantSpec& spec = setup.record.storage.quant;
    limits.other.push_back({"a weight that is measured",
                            QuantizedBytes(spec, largest) + 16 * spec.BlockCount(largest)});
  }
  absl::StatusOr<Plan> plan =
      MakePlan(setup.spec, setup.record, *setup.device, setup.rates, limits);
  if (!plan.ok()) return proto::DoesNotFitError(plan.status().message());
  absl::StatusOr<std::unique_ptr<Execution>> execution =
      Execution::Create(*plan, setup.device.get());
  if (!execution.ok()) return proto::DoesNotFitError(execution.status().message());
  if (absl::Status s = LoadModel(setup, "", execution->get(), console,
                                 LiveProgress(console, "loading", stop_signal, anew));
      !s.ok()) {
    return s;
  }
  const absl::Status written =
      WritePrequantized(setup.env, folder, *setup.model, execution->get(),
                        LiveProgress(console, "writing", stop_signal, anew));
  console->EndLive();
  if (!written.ok()) {
    return proto::HasExitCode(written) ? written : proto::IoError(written.message());
  }
  const WeightErrorOptions options{.outlier_factor = setup.job.drift().outlier_factor(),
                                   .threads = setup.job.num_threads()};
  absl::StatusOr<std::vector<NamedWeightError>> errors = MeasureLoadedWeights(
      *setup.model, options, execution->get(),
      LiveProgress(console, "measuring", stop_signal,
                   absl::StrCat("stopped; the model in ", folder, " is whole, ", kErrorFile,
                                " is not written")));
  console->EndLive();
  if (!errors.ok()) return errors.status();
  const proto::QuantizationReport report =
      QuantizationReportOf(setup.record.storage.quant, options.outlier_factor, *errors);
  console->Line(WeightTable(report));
  absl::StatusOr<std::string> json = ReportJson(report);
  if (!json.ok()) return json.status();
  if (absl::Status s = AtomicWriteFile(setup.env, JoinPath(folder, kErrorFile), *json); !s.ok()) {
    return proto::IoError(s.message());
  }
  console->Line(absl::StrCat("written: ", folder));
  return absl::OkStatus();
}

}  // namespace qlora::engine
