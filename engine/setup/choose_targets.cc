#include "engine/setup/choose_targets.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/input_error.h"
#include "engine/lora/saved_adapter.h"
#include "engine/model/prequantized.h"

namespace qlora::engine {
namespace {

using proto::Command;

// The adapter that a command uses without training it.
struct SavedAdapter {
  const char* field;
  std::string folder;  // empty: none
};

SavedAdapter SavedAdapterOf(const Setup& setup) {
  const proto::Job& job = setup.job;
  if (setup.command == Command::kEval) return {"eval.adapter", job.eval().adapter()};
  if (setup.command == Command::kGenerate) return {"generate.adapter", job.generate().adapter()};
  if (setup.command == Command::kDrift) return {"drift.adapter", job.drift().adapter()};
  if (setup.command == Command::kMerge) return {"merge.adapter", job.merge().adapter()};
  return {"", ""};
}

// The lora message that a saved adapter answers to: exactly the modules that it holds.
absl::StatusOr<proto::Lora> LoraOf(Env* env, const SavedAdapter& saved) {
  const absl::StatusOr<LoadedAdapter> adapter = ReadAdapter(env, saved.folder, {});
  if (!adapter.ok()) return proto::Annotate(AsInputError(adapter.status()), saved.field);
  proto::Lora lora;
  lora.set_r(int32_t(adapter->adapter.config.r));
  lora.set_lora_alpha(adapter->adapter.config.lora_alpha);
  lora.set_use_rslora(adapter->adapter.config.use_rslora);
  lora.set_allow_uneven_targets(true);
  for (const AdapterModule& module : adapter->adapter.modules) {
    lora.add_target_modules(module.path);
  }
  return lora;
}

absl::Status AdapterOfAnotherModel(const Setup& setup, const SavedAdapter& saved,
                                   const proto::Lora& lora, const std::vector<WeightRow>& rows) {
  constexpr size_t kMaxShown = 5;
  std::vector<std::string> strangers;
  for (const std::string& module : lora.target_modules()) {
    const bool known = std::any_of(rows.begin(), rows.end(), [&](const WeightRow& row) {
      return row.name == module + ".weight";
    });
    if (!known) strangers.push_back(module);
  }
  const size_t count = strangers.size();
  strangers.resize(std::min(count, kMaxShown));
  return proto::BadDataError(absl::StrCat(
      saved.field, ": ", saved.folder, " adapts ", count, " modules that ", setup.config_file,
      " does not describe: ", absl::StrJoin(strangers, ", "), count > kMaxShown ? ", ..." : "",
      ". Give the model that the adapter was trained on (base_model_name_or_path in its "
      "adapter_config.json)"));
}

// The adapter to go on from must be exactly the one that this job describes: of another rank or
// scale its weights would mean something else.
absl::Status CheckInitFrom(const Setup& setup, std::vector<std::string>* problems) {
  const proto::Lora& lora = setup.job.lora();
  if (lora.init_from().empty()) return absl::OkStatus();
  const absl::StatusOr<LoadedAdapter> adapter =
      ReadAdapterOf(setup.env, lora.init_from(), setup.targets.modules);
  if (!adapter.ok()) return proto::Annotate(AsInputError(adapter.status()), "lora.init_from");
  const AdapterConfig& config = adapter->adapter.config;
  const auto must_equal = [&](const char* field, const std::string& job, const std::string& there) {
    if (job == there) return;
    problems->push_back(absl::StrCat("lora.", field, ": found ", job, "; the adapter of ",
                                     "lora.init_from (", lora.init_from(), ") has ", there,
                                     ": set lora.", field, ": ", there));
  };
  must_equal("r", absl::StrCat(lora.r()), absl::StrCat(config.r));
  must_equal("lora_alpha", absl::StrCat(lora.lora_alpha()), absl::StrCat(config.lora_alpha));
  must_equal("use_rslora", lora.use_rslora() ? "true" : "false",
             config.use_rslora ? "true" : "false");
  return absl::OkStatus();
}

}  // namespace

absl::Status ChooseTargets(Setup* setup, std::vector<std::string>* problems) {
  Setup& s = *setup;
  const bool trains = IsAboutTraining(s.command);
  const SavedAdapter saved = SavedAdapterOf(s);
  if (trains ? s.job.mode() == proto::Mode::FULL : saved.folder.empty()) return absl::OkStatus();
  absl::StatusOr<proto::Lora> lora = s.job.lora();
  if (!trains) lora = LoraOf(s.env, saved);
  if (!lora.ok()) return lora.status();
  const std::vector<WeightRow> rows = WeightRows(s.spec);
  absl::StatusOr<LoraTargets> targets = ResolveLoraTargets(*lora, rows);
  if (!targets.ok() && !trains) return AdapterOfAnotherModel(s, saved, *lora, rows);
  if (!targets.ok()) {
    problems->emplace_back(targets.status().message());
    return absl::OkStatus();
  }
  s.targets = *std::move(targets);
  s.lora_size = MeasureLora(s.targets, rows);
  return trains ? CheckInitFrom(s, problems) : absl::OkStatus();
}

absl::Status CheckResidualNote(Setup* setup) {
  Setup& s = *setup;
  const bool starts = IsAboutTraining(s.command) && s.job.mode() != proto::Mode::FULL;
  const SavedAdapter adapter =
      starts ? SavedAdapter{"lora.init_from", s.job.lora().init_from()} : SavedAdapterOf(s);
  if (adapter.folder.empty()) return absl::OkStatus();
  absl::StatusOr<std::optional<ResidualNote>> note = ReadResidualNote(s.env, adapter.folder);
  if (!note.ok()) return AsInputError(note.status());
  s.residual_note = *std::move(note);
  if (!s.residual_note) return absl::OkStatus();
  const std::string here = s.job.mode() == proto::Mode::QLORA
                               ? BaseFields(s.record.storage.quant, s.spec.kept_in_16_bits)
                               : absl::StrCat("mode ", proto::Mode::Value_Name(s.job.mode()));
  if (s.residual_note->quantization != here) {
    return proto::BadJobError(absl::StrCat(adapter.field, ": the adapter of ", adapter.folder,
                                           " started from the residual of ",
                                           s.residual_note->quantization, "; the job has ", here,
                                           ": give it the same base, or another adapter"));
  }
  s.warnings.push_back(ResidualWarning(adapter.folder));
  if (s.residual_note->base_sha256 != s.base_hash) {
    s.warnings.push_back(
        absl::StrCat(adapter.folder, ": it was made for a base with the hash ",
                     s.residual_note->base_sha256, "; this one has ", s.base_hash,
                     ". That is well if this is the 4-bit copy of that one, and wrong otherwise"));
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
