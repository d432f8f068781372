#include "engine/checkpoint/output_folder.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/folder_claim.h"
#include "engine/checkpoint/job_identity.h"
#include "engine/input_error.h"
#include "engine/io/atomic_file.h"
#include "engine/io/model_files.h"

namespace qlora::engine {
namespace {

absl::Status RemoveCheckpoints(Env* env, const std::string& folder) {
  absl::StatusOr<std::vector<std::string>> names = env->List(folder);
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    if (!CheckpointStep(name).has_value()) continue;
    if (absl::Status s = env->RemoveAll(JoinPath(folder, name)); !s.ok()) return s;
  }
  return absl::OkStatus();
}

// Where nothing but the global batch differs, as after a change of the number of ranks: the field
// that gives the same again.
std::string SameBatch(const Setup& setup, const std::string& differing) {
  int64_t micro_batches = 0;
  for (absl::string_view line : absl::StrSplit(differing, '\n', absl::SkipWhitespace())) {
    line = absl::StripLeadingAsciiWhitespace(line);
    absl::string_view value = absl::StripLeadingAsciiWhitespace(line.substr(1));
    if (!absl::ConsumePrefix(&value, "gradient_accumulation_steps: ")) return "";
    if (line[0] == '-' && !absl::SimpleAtoi(value, &micro_batches)) return "";
  }
  const int64_t world = setup.world();
  if (micro_batches == 0 || micro_batches % world != 0) return "";
  return absl::StrCat("The run was begun with ", micro_batches,
                      " micro-batches a step over all ranks. To go on with ", world,
                      world == 1 ? " rank" : " ranks",
                      " set training.gradient_accumulation_steps: ", micro_batches / world, ". ");
}

// What of the job, model or data differs; empty where the run that wrote `state` is this one.
std::string WhatDiffers(const Setup& setup, const proto::RunState& state) {
  if (state.job_hash() != setup.job_hash) {
    absl::StatusOr<std::string> before =
        setup.env->ReadFile(JoinPath(setup.job.output_dir(), kJobFile), kMaxJobBytes);
    const std::string differing =
        before.ok() ? DifferingLines(*before, setup.job_text) : std::string();
    if (differing.empty()) return "Its model or its data differ.\n";
    return absl::StrCat("What differs (- there, + this job):\n", differing,
                        SameBatch(setup, differing));
  }
  const auto differ = [](const std::string& before, const std::string& now) {
    return !before.empty() && !now.empty() && before != now;
  };
  if (differ(state.samples_hash(), setup.samples_hash)) {
    return absl::StrCat("Its data are the same, but gave other tokens: the tokenizer in ",
                        setup.tokenizer_folder, " has changed.\n");
  }
  if (differ(state.held_out_hash(), setup.held_out_hash)) {
    return "Its held-out data differ, and losses of both could not be compared: give it the same "
           "ones (for others there is the command eval).\n";
  }
  return "";
}

// Weights that no checkpoint here belongs to: of a run whose checkpoints were removed, or a model
// that somebody keeps.
absl::Status CheckNoResults(Env* env, const std::string& folder) {
  for (const char* name : {kAdapterModelFile, kModelFile, kModelIndexFile}) {
    if (!env->Exists(JoinPath(folder, name))) continue;
    return proto::BadJobError(absl::StrCat(
        "output_dir ", folder, " holds ", name,
        " and no checkpoint to go on from. Give this job an output_dir of its own, or set "
        "overwrite_output_dir: true to replace that file"));
  }
  return absl::OkStatus();
}

// Creates a file in the folder, for a moment. One that then also stands in the model's folder tells
// that the two are one, whatever links and dots their paths are made of.
absl::Status TryToWrite(Env* env, const std::string& folder, const std::string& model_folder,
                        bool* is_model_folder) {
  const std::string probe =
      JoinPath(folder, absl::StrCat(kTemporaryPrefix, "write-test-", env->RandomId()));
  absl::StatusOr<std::unique_ptr<WritableFile>> file = env->NewWritableFile(probe);
  if (!file.ok()) return file.status();
  if (absl::Status s = (*file)->Close(); !s.ok()) return s;
  *is_model_folder = !model_folder.empty() && env->Exists(JoinPath(model_folder, BaseName(probe)));
  return env->RemoveFile(probe);
}

}  // namespace

bool HoldsUnfinishedRun(Env* env, const std::string& folder) {
  return env->Exists(JoinPath(folder, kUnfinishedFile));
}

absl::StatusOr<std::optional<std::string>> CheckOutputFolder(const Setup& setup, bool is_unfinished,
                                                             Console* console) {
  Env* env = setup.env;
  const std::string& folder = setup.job.output_dir();
  bool is_model_folder = false;
  if (absl::Status s = TryToWrite(env, folder, setup.model_folder, &is_model_folder); !s.ok()) {
    return CannotWriteFolder(folder, s);
  }
  if (is_model_folder) {
    return proto::BadJobError(absl::StrCat("output_dir ", folder, " is the model's folder ",
                                           setup.model_folder,
                                           ". Give this job an output_dir of its own"));
  }
  // First, because it also puts back a checkpoint that was moved aside when its writer died.
  if (absl::Status s = CleanTemporaries(env, folder); !s.ok()) return CannotWriteFolder(folder, s);
  absl::StatusOr<NewestCheckpoint> newest = FindNewestValid(env, folder);
  if (!newest.ok()) return AsInputError(newest.status());
  std::string differing;
  if (newest->path.has_value()) {
    absl::StatusOr<proto::RunState> state = ReadRunState(env, *newest->path);
    if (!state.ok()) return proto::Annotate(AsInputError(state.status()), *newest->path);
    differing = WhatDiffers(setup, *state);
  }
  if (setup.job.overwrite_output_dir()) {
    // Not what this very job has begun: the same command goes on with that.
    const bool goes_on = newest->path.has_value() && differing.empty() &&
                         (is_unfinished || newest->manifest.step() < setup.total_steps);
    return goes_on ? newest->path : std::nullopt;
  }
  for (const auto& [path, reason] : newest->refused) {
    console->Warning(absl::StrCat(path, " is not used: ", reason.message()));
  }
  if (!newest->path.has_value() && !newest->refused.empty()) {
    return proto::BadDataError(absl::StrCat(
        "none of the checkpoints in ", folder,
        " can be used; to start from scratch remove them or set overwrite_output_dir: true"));
  }
  if (!differing.empty()) {
    return proto::BadJobError(
        absl::StrCat("output_dir ", folder, " holds the checkpoints of another job. ", differing,
                     "Give this job an output_dir of its own, or set overwrite_output_dir: true to "
                     "discard those checkpoints"));
  }
  if (!newest->path.has_value()) {
    if (absl::Status s = CheckNoResults(env, folder); !s.ok()) return s;
  }
  return newest->path;
}

absl::Status TakeOutputFolder(const Setup& setup, bool is_resumed) {
  Env* env = setup.env;
  const std::string& folder = setup.job.output_dir();
  if (setup.job.overwrite_output_dir() && !is_resumed) {
    if (absl::Status s = RemoveCheckpoints(env, folder); !s.ok()) {
      return CannotWriteFolder(folder, s);
    }
  }
  for (const auto& [name, content] :
       {std::pair<const char*, absl::string_view>{kUnfinishedFile, ""},
        {kJobFile, setup.job_text}}) {
    if (absl::Status s = AtomicWriteFile(env, JoinPath(folder, name), content); !s.ok()) {
      return CannotWriteFolder(folder, s);
    }
  }
  return absl::OkStatus();
}

absl::Status FinishOutputFolder(const Setup& setup) {
  const std::string& folder = setup.job.output_dir();
  if (!HoldsUnfinishedRun(setup.env, folder)) return absl::OkStatus();
  const absl::Status removed = setup.env->RemoveFile(JoinPath(folder, kUnfinishedFile));
  return removed.ok() ? removed : CannotWriteFolder(folder, removed);
}

}  // namespace qlora::engine
