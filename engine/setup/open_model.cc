#include "engine/setup/open_model.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/job_identity.h"
#include "engine/input_error.h"
#include "engine/io/hub_cache.h"
#include "engine/io/model_files.h"
#include "engine/model/families.h"
#include "engine/model/kept_modules.h"
#include "engine/model/load_weights.h"
#include "engine/model/prequantized.h"

namespace qlora::engine {
namespace {

using proto::Command;

constexpr int64_t kMaxConfigBytes = 16 << 20;

absl::Status OpenNewModel(Setup* setup) {
  Setup& s = *setup;
  s.config_file = s.job.model_init().config();
  s.tokenizer_folder = s.job.model_init().tokenizer();
  absl::StatusOr<std::string> text = s.env->ReadFile(s.config_file, kMaxConfigBytes);
  if (!text.ok()) return AsInputError(text.status());
  absl::StatusOr<ModelSpec> spec = ParseModelConfig(*text, s.config_file);
  if (!spec.ok()) return AsInputError(spec.status());
  s.spec = *std::move(spec);
  return absl::OkStatus();
}

// What measures or makes 4-bit weights starts from 16-bit ones.
absl::Status CheckUnquantized(const Setup& setup) {
  if (setup.command != Command::kQuantize && setup.command != Command::kDrift) {
    return absl::OkStatus();
  }
  const std::vector<WeightRow> rows = WeightRows(setup.spec);
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const WeightRow& row) {
    return IsPrequantized(*setup.model, row);
  });
  if (found == rows.end()) return absl::OkStatus();
  return proto::BadDataError(
      absl::StrCat(setup.model_folder, ": tensor ", found->name,
                   " is stored in 4 bits already; needed are 16- or 32-bit weights, ",
                   setup.command == Command::kDrift ? "which are the baseline" : "to quantize",
                   ": give the checkpoint that this one was quantized from"));
}

}  // namespace

absl::Status OpenModel(Setup* setup) {
  Setup& s = *setup;
  if (s.job.has_model_init()) return OpenNewModel(setup);
  absl::StatusOr<std::string> folder = ResolveModel(s.env, s.job.model(), HubCacheFolder());
  if (!folder.ok()) return AsInputError(folder.status());
  s.model_folder = s.tokenizer_folder = *folder;
  s.config_file = JoinPath(*folder, kConfigFile);
  absl::StatusOr<ModelSpec> spec = ReadModelConfig(s.env, *folder);
  if (!spec.ok()) return AsInputError(spec.status());
  s.spec = *std::move(spec);
  const auto& kept = s.job.quantization().keep_in_16_bits();
  const std::vector<std::string> names(kept.begin(), kept.end());
  if (absl::Status status = KeepIn16Bits(names, &s.spec); !status.ok()) return status;
  absl::StatusOr<ShardedModel> model = ShardedModel::Open(s.env, *folder);
  if (s.command == Command::kPlan && absl::IsNotFound(model.status())) {
    s.warnings.push_back(absl::StrCat(*folder, " has no weights: planned by ", s.config_file,
                                      " alone, weights in 16 bits"));
    return absl::OkStatus();
  }
  if (!model.ok()) return AsInputError(model.status());
  s.model = *std::move(model);
  if (absl::Status status = CheckUnquantized(s); !status.ok()) return status;
  return AsInputError(CheckCheckpoint(*s.model, s.job.mode(), QuantSpecOf(s.job.quantization()),
                                      &s.spec, &s.warnings));
}

absl::Status OpenTokenizer(Setup* setup) {
  Setup& s = *setup;
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(s.tokenizer_folder);
  if (!tokenizer.ok()) {
    // Pretokenized input needs none.
    const proto::DataFormat::Value format = s.job.data().format();
    const bool needed =
        s.command == Command::kGenerate || s.job.eval().exact_match() ||
        (format != proto::DataFormat::PRETOKENIZED && format != proto::DataFormat::AUTO);
    const bool has_data = s.job.data().has_train_file() || s.job.data().has_eval_file();
    const bool is_absent = absl::IsNotFound(tokenizer.status());
    if (s.command == Command::kPlan && !has_data && is_absent) return absl::OkStatus();
    if (needed || !is_absent) return AsInputError(tokenizer.status());
    return absl::OkStatus();
  }
  s.tokenizer = *std::move(tokenizer);
  if (s.tokenizer->vocab_size() > s.spec.vocab) {
    return proto::BadDataError(absl::StrCat(
        JoinPath(s.tokenizer_folder, "tokenizer.json"), " has token ids up to ",
        s.tokenizer->vocab_size() - 1, "; the model of ", s.config_file, " has embeddings for ",
        s.spec.vocab, " (vocab_size). Use the tokenizer that belongs to the model"));
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
