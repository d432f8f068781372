#include "engine/commands/verify.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/result_sums.h"
#include "engine/input_error.h"
#include "engine/io/atomic_file.h"
#include "engine/io/atomic_folder.h"
#include "engine/io/model_files.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

// Whether a manifest tells what is in it: a checkpoint, a model that `merge` or `quantize` wrote.
bool GoesByManifest(Env* env, const std::string& path) {
  return CheckpointStep(BaseName(path)).has_value() || env->Exists(JoinPath(path, kManifestFile));
}

class Verification {
 public:
  Verification(Env* env, Console* console) : env_(*env), console_(*console) {}

  // What lies in one output folder.
  absl::Status CheckOutput(const std::string& folder) {
    absl::StatusOr<std::vector<std::string>> names = env_.List(folder);
    if (!names.ok()) return names.status();
    for (const std::string& name : *names) {
      const std::string path = JoinPath(folder, name);
      if (GoesByManifest(&env_, path)) CheckFolder(path);
      if (!absl::StartsWith(name, kReplacedPrefix)) continue;
      ++found_;
      console_.Line(absl::StrCat("aside    ", path,
                                 ": moved away by a run that died; the next one looks at it"));
    }
    return CheckResults(folder);
  }

  // One that goes by its manifest.
  void CheckFolder(const std::string& path) {
    const bool is_checkpoint = CheckpointStep(BaseName(path)).has_value();
    absl::StatusOr<proto::FolderManifest> manifest =
        is_checkpoint ? VerifyCheckpoint(&env_, path, VerifyDepth::kChecksumsAndHashes)
                      : VerifyFolder(&env_, path, VerifyDepth::kChecksumsAndHashes);
    std::string what;
    if (manifest.ok() && is_checkpoint) what = absl::StrCat("step ", manifest->step(), ", ");
    if (manifest.ok()) absl::StrAppend(&what, manifest->files_size(), " files");
    Tell(path, manifest.status(), what);
  }

  int64_t found() const { return found_; }
  const absl::Status& worst() const { return worst_; }

 private:
  absl::Status CheckResults(const std::string& folder) {
    absl::StatusOr<std::vector<ResultSum>> sums = ReadResultSums(&env_, folder);
    if (absl::IsNotFound(sums.status())) {
      TellUnchecked(folder);
      return absl::OkStatus();
    }
    if (!sums.ok()) {
      Tell(JoinPath(folder, kResultSumsFile), sums.status(), "");
      return absl::OkStatus();
    }
    for (const ResultSum& sum : *sums) {
      Tell(JoinPath(folder, sum.name), CheckResultSum(&env_, folder, sum), "as the run wrote it");
    }
    return absl::OkStatus();
  }

  // A result that nothing tells what it was when it was written.
  void TellUnchecked(const std::string& folder) {
    for (const char* name : {kAdapterModelFile, kModelFile}) {
      const std::string path = JoinPath(folder, name);
      if (!env_.Exists(path)) continue;
      console_.Line(
          absl::StrCat("unchecked ", path, ": there is no ", kResultSumsFile, " beside it"));
    }
  }

  void Tell(const std::string& path, const absl::Status& status, const std::string& what) {
    ++found_;
    if (status.ok()) {
      console_.Line(absl::StrCat("whole    ", path, ": ", what));
      return;
    }
    const bool is_unread = IsIoError(status);
    console_.Line(
        absl::StrCat(is_unread ? "unread   " : "damaged  ", path, ": ", status.message()));
    if (worst_.ok() || (IsIoError(worst_) && !is_unread)) worst_ = status;
  }

  Env& env_;
  Console& console_;
  int64_t found_ = 0;
  absl::Status worst_;  // the first that is damaged, else the first that can't be read
};

}  // namespace

absl::Status Verify(Env* env, const std::string& folder, Console* console) {
  Verification verification(env, console);
  if (env->Exists(JoinPath(folder, kManifestFile))) {
    verification.CheckFolder(folder);
    return AsInputError(verification.worst());
  }
  if (absl::Status s = verification.CheckOutput(folder); !s.ok()) return AsInputError(s);
  // What a sweep leaves lies one folder deeper.
  absl::StatusOr<std::vector<std::string>> names = env->List(folder);
  if (!names.ok()) return AsInputError(names.status());
  for (const std::string& name : *names) {
    const std::string path = JoinPath(folder, name);
    if (GoesByManifest(env, path) || !env->IsFolder(path)) continue;
    if (absl::Status s = verification.CheckOutput(path); !s.ok()) return AsInputError(s);
  }
  if (verification.found() == 0) {
    return proto::MissingFileError(
        absl::StrCat(folder, " holds nothing that can be checked: no checkpoint, no ",
                     kResultSumsFile, " of a result, no model that merge or quantize wrote"));
  }
  return AsInputError(verification.worst());
}

}  // namespace qlora::engine
