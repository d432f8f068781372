#include "engine/drift/quantize_base.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/folder_claim.h"
#include "engine/drift/drift_text.h"
#include "engine/drift/measure_weights.h"
#include "engine/input_error.h"
#include "engine/io/atomic_file.h"
#include "engine/io/manifest.h"
#include "engine/io/model_files.h"
#include "engine/model/prequantized.h"
#include "engine/report/report_json.h"
#include "engine/setup/load_model.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

constexpr char kFolder[] = "quantized";
constexpr char kErrorFile[] = "quantization_error.json";

// OK where nothing stands at `folder`, an empty or unfinished model, or, with overwrite_output_dir,
// one that is whole. Nobody else's file goes with the model that is replaced.
absl::Status CheckReplaceable(const Setup& setup, const std::string& folder) {
  const absl::StatusOr<FileStat> stat = setup.env->Stat(folder, /*follow=*/false);
  if (absl::IsNotFound(stat.status())) return absl::OkStatus();
  if (!stat.ok()) return CannotWriteFolder(folder, stat.status());
  if (stat->kind != FileStat::Kind::kFolder) {
    return proto::BadJobError(absl::StrCat("output_dir: ", folder,
                                           " is there already and no folder; give another "
                                           "output_dir, or move it away"));
  }
  if (!setup.job.overwrite_output_dir() && setup.env->Exists(JoinPath(folder, kConfigFile))) {
    return proto::BadJobError(absl::StrCat(
        "output_dir: ", folder,
        " holds a model already; give another output_dir, or set overwrite_output_dir: true to "
        "replace it"));
  }
  const absl::StatusOr<std::vector<std::string>> names = setup.env->List(folder);
  if (!names.ok()) return CannotWriteFolder(folder, names.status());
  for (const std::string& name : *names) {
    if (IsModelFile(name) || name == kManifestFile || name == kErrorFile) continue;
    return proto::BadJobError(absl::StrCat("output_dir: ", folder, " holds ", name,
                                           ", which no quantize wrote, and is replaced as a whole; "
                                           "move that away, or give another output_dir"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status QuantizeBase(const Setup& setup, Console* console, StopSignal stop_signal) {
  if (absl::Status s = CheckBitsandbytesHas(setup.record.storage.quant); !s.ok()) return s;
  const std::string folder = JoinPath(setup.job.output_dir(), kFolder);
  // Of all of output_dir: the new model is made in it, beside the old one.
  const absl::StatusOr<std::unique_ptr<FolderClaim>> claim =
      FolderClaim::Take(setup.env, setup.job.output_dir(), console);
  if (!claim.ok()) return claim.status();
  if ((*claim)->is_locked()) {
    absl::Status cleaned = CleanTemporariesOf(setup.env, setup.job.output_dir(), kFolder);
    if (cleaned.ok()) cleaned = CleanTemporaries(setup.env, folder);
    if (!cleaned.ok()) return CannotWriteFolder(folder, cleaned);
  }
  if (absl::Status s = CheckReplaceable(setup, folder); !s.ok()) return s;
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
