#include "engine/merge/merge_output.h"

#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/output_names.h"
#include "engine/input_error.h"
#include "engine/io/atomic_file.h"
#include "engine/io/manifest.h"
#include "engine/io/model_files.h"

namespace qlora::engine {
namespace {

constexpr char kField[] = "merge.output";

// The name in `folder` at or above `path`, which lies in it.
std::string NameIn(const std::string& folder, const std::string& path) {
  std::string at = path;
  while (ParentPath(at) != folder) at = ParentPath(at);
  return BaseName(at);
}

// "holds thesis.txt, which no merge wrote", or why else a folder is not what a merge left; empty
// where it is, or holds nothing.
absl::StatusOr<std::string> WhyKept(Env* env, const std::string& folder) {
  const absl::StatusOr<std::vector<std::string>> names = env->List(folder);
  if (!names.ok()) return names.status();
  if (names->empty()) return std::string();
  const absl::StatusOr<proto::FolderManifest> manifest = ReadManifest(env, folder);
  if (IsIoError(manifest.status())) return manifest.status();
  const auto not_ours = [](const std::string& name) {
    return absl::StrCat("holds ", name, ", which no merge wrote");
  };
  for (const std::string& name : *names) {
    if (!IsModelFile(name) && name != kManifestFile) return not_ours(name);
  }
  if (!manifest.ok()) {
    return absl::StrCat("holds ", names->front(), ", and no ", kManifestFile,
                        " that says that a merge wrote it");
  }
  absl::flat_hash_map<std::string, int64_t> sizes;
  for (const auto& file : manifest->files()) sizes[file.name()] = int64_t(file.size());
  for (const std::string& name : *names) {
    if (name == kManifestFile) continue;
    const auto size = sizes.find(name);
    if (size == sizes.end()) return not_ours(name);
    const absl::StatusOr<FileStat> stat = env->Stat(JoinPath(folder, name), /*follow=*/false);
    if (!stat.ok()) return stat.status();
    if (stat->kind != FileStat::Kind::kFile || stat->size != size->second) {
      return absl::StrCat("holds ", name, ", which is not as it was merged");
    }
  }
  return sizes.contains(kConfigFile) ? "" : "holds no config.json";
}

}  // namespace

absl::StatusOr<std::unique_ptr<MergeOutput>> MergeOutput::Take(const Setup& setup,
                                                               Console* console) {
  std::unique_ptr<MergeOutput> output(new MergeOutput(setup));
  if (absl::Status s = output->CheckPlace(); !s.ok()) return s;
  absl::StatusOr<std::unique_ptr<FolderClaim>> claim =
      FolderClaim::Take(setup.env, setup.job.output_dir(), console);
  if (!claim.ok()) return claim.status();
  output->output_dir_ = *std::move(claim);
  // Jobs with an output_dir each may name the same folder here.
  claim = FolderClaim::TakeBeside(setup.env, output->path_, kField, console);
  if (!claim.ok()) return claim.status();
  output->output_ = *std::move(claim);
  // First, because it also puts back a model that was moved aside when its successor's writer died.
  if (output->output_->is_locked()) {
    const absl::Status cleaned =
        CleanTemporariesOf(setup.env, ParentPath(output->path_), BaseName(output->path_));
    if (!cleaned.ok()) return proto::IoError(absl::StrCat(kField, ": ", cleaned.message()));
  }
  if (absl::Status s = output->CheckReplaceable(); !s.ok()) return s;
  return output;
}

absl::Status MergeOutput::CheckPlace() const {
  const auto refused = [&](absl::string_view why, absl::string_view remedy) {
    return proto::BadJobError(absl::StrCat(kField, ": ", path_, " ", why, "; ", remedy));
  };
  const std::string name = BaseName(path_);
  if (!FolderCommit::TakesName(name)) {
    return refused("is no name for a model", "give a folder with another name");
  }
  // Of the place, not of what a link there leads to.
  const std::string place = JoinPath(ResolvedPath(ParentPath(path_)), name);
  const std::string model = ResolvedPath(setup_.model_folder);
  const std::string output_dir = ResolvedPath(setup_.job.output_dir());
  const bool has_own_folder =
      IsWithin(output_dir, model) && output_dir != model && IsWithin(place, output_dir);
  if ((IsWithin(place, model) && !has_own_folder) || IsWithin(model, place)) {
    return refused(absl::StrCat("and the model's folder ", setup_.model_folder,
                                " lie in each other: a loader could take the one's files for the "
                                "other's"),
                   "give a folder outside it");
  }
  for (const std::string& folder : {output_dir, ResolvedPath(setup_.job.merge().adapter())}) {
    if (!IsWithin(place, folder) || place == folder) continue;
    const std::string taken = NameIn(folder, place);
    if (!IsOutputName(taken)) continue;
    return refused(absl::StrCat("stands where a run puts ", taken, " of its own in ", folder),
                   "give another name, \"merged\" say");
  }
  return absl::OkStatus();
}

absl::Status MergeOutput::CheckReplaceable() const {
  Env* env = setup_.env;
  const absl::StatusOr<FileStat> stat = env->Stat(path_, /*follow=*/false);
  if (absl::IsNotFound(stat.status())) return absl::OkStatus();
  if (!stat.ok()) return proto::IoError(absl::StrCat(kField, ": ", stat.status().message()));
  const absl::StatusOr<std::string> why = stat->kind == FileStat::Kind::kFolder
                                              ? WhyKept(env, path_)
                                              : std::string("is there already and no folder");
  if (!why.ok()) return proto::IoError(absl::StrCat(kField, ": ", why.status().message()));
  if (!why->empty()) {
    return proto::BadJobError(absl::StrCat(
        kField, ": ", path_, " ", *why,
        ". Only an empty folder or the model of an earlier merge is replaced, and only with "
        "overwrite_output_dir: true; give another folder, or move what is there away"));
  }
  if (setup_.job.overwrite_output_dir()) return absl::OkStatus();
  return proto::BadJobError(
      absl::StrCat(kField, ": ", path_,
                   " is there already; give another folder, or set overwrite_output_dir: "
                   "true to replace it"));
}

absl::StatusOr<std::unique_ptr<FolderCommit>> MergeOutput::NewModel() const {
  absl::StatusOr<std::unique_ptr<FolderCommit>> folder =
      FolderCommit::Begin(setup_.env, ParentPath(path_), BaseName(path_));
  if (!folder.ok()) return AsInputError(folder.status());
  return folder;
}

}  // namespace qlora::engine
