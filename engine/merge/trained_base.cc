#include "engine/merge/trained_base.h"

#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/job_identity.h"
#include "engine/checkpoint/output_folder.h"
#include "engine/io/atomic_folder.h"
#include "engine/io/json_file.h"
#include "engine/model/kept_modules.h"
#include "engine/model/prequantized.h"
#include "engine/report/sidecar.h"
#include "proto/job_check.h"
#include "proto/job_defaults.h"

namespace qlora::engine {
namespace {

// The decisive fields of the job that trained it.
std::optional<std::string> TrainingJob(Env* env, const std::string& folder) {
  const absl::StatusOr<nlohmann::json> sidecar = ReadJsonFile(env, JoinPath(folder, kSidecarFile));
  if (sidecar.ok()) {
    const nlohmann::json::json_pointer fields("/job/decisive_fields");
    if (sidecar->contains(fields) && sidecar->at(fields).is_string()) return sidecar->at(fields);
  }
  std::vector<std::string> folders = {folder};
  if (CheckpointStep(BaseName(folder))) folders.push_back(ParentPath(folder));
  for (const std::string& at : folders) {
    absl::StatusOr<std::string> text = env->ReadFile(JoinPath(at, kJobFile), kMaxJobBytes);
    if (text.ok()) return *std::move(text);
  }
  return std::nullopt;
}

std::string BaseText(proto::Mode::Value mode, const quant::QuantSpec& spec,
                     absl::Span<const std::string> kept) {
  return mode == proto::Mode::QLORA ? BaseFields(spec, kept)
                                    : absl::StrCat("mode: ", proto::Mode::Value_Name(mode));
}

}  // namespace

std::string OtherBaseWarning(const Setup& setup, const std::string& folder) {
  const std::optional<std::string> text = TrainingJob(setup.env, folder);
  if (!text) return "";
  const absl::StatusOr<proto::Job> parsed = proto::ParseJob(*text, folder, {});
  if (!parsed.ok()) return "";
  const proto::Job job = proto::WithDefaults(*parsed);
  ModelSpec spec = setup.spec;
  const auto& kept = job.quantization().keep_in_16_bits();
  const std::vector<std::string> names(kept.begin(), kept.end());
  if (!KeepIn16Bits(names, &spec).ok()) return "";
  const std::string trained =
      BaseText(job.mode(), QuantSpecOf(job.quantization()), spec.kept_in_16_bits);
  const std::string here =
      BaseText(setup.job.mode(), setup.record.storage.quant, setup.spec.kept_in_16_bits);
  if (trained == here) return "";
  return absl::StrCat("merge.adapter: the adapter of ", folder,
                      " was trained on another base: ", trained, "; this merge takes ", here,
                      ". For the weights that were trained give the job the former fields");
}

}  // namespace qlora::engine
