#include "engine/checkpoint/folder_claim.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

absl::Status CannotWrite(const std::string& what, const absl::Status& status) {
  return proto::IoError(absl::StrCat(what, " cannot be written: ", status.message()));
}

}  // namespace

absl::Status FolderClaim::Lock(const std::string& path, const std::string& what, Console* console,
                               const FileLock::Flock& flock) {
  const std::string parent = ParentPath(path);
  for (std::string folder = parent; !env_->IsFolder(folder); folder = ParentPath(folder)) {
    created_.push_back(folder);
    if (ParentPath(folder) == folder) break;
  }
  if (absl::Status s = env_->CreateFolders(parent); !s.ok()) return CannotWrite(what, s);
  absl::StatusOr<std::unique_ptr<FileLock>> lock = FileLock::Take(
      path, absl::StrCat("process ", env_->ProcessId(), " on ", env_->HostName()), flock);
  if (absl::IsUnavailable(lock.status())) {
    return proto::BadJobError(absl::StrCat(
        what, " is in use by another run: ", lock.status().message(),
        ". Wait until it has ended, or give this job another ", what.substr(0, what.find(' '))));
  }
  if (absl::IsUnimplemented(lock.status())) {
    console->Warning(absl::StrCat(what, " can't be locked (", lock.status().message(),
                                  "): make sure that no other run writes there"));
    return absl::OkStatus();
  }
  if (!lock.ok()) return CannotWrite(what, lock.status());
  lock_ = *std::move(lock);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<FolderClaim>> FolderClaim::Take(Env* env, const std::string& folder,
                                                               Console* console,
                                                               const FileLock::Flock& flock) {
  std::unique_ptr<FolderClaim> claim(new FolderClaim(env));
  const absl::Status locked =
      claim->Lock(JoinPath(folder, kLockFile), absl::StrCat("output_dir ", folder), console, flock);
  if (!locked.ok()) return locked;
  return claim;
}

absl::StatusOr<std::unique_ptr<FolderClaim>> FolderClaim::TakeBeside(Env* env,
                                                                     const std::string& folder,
                                                                     const char* field,
                                                                     Console* console,
                                                                     const FileLock::Flock& flock) {
  std::unique_ptr<FolderClaim> claim(new FolderClaim(env));
  const std::string lock =
      JoinPath(ParentPath(folder), absl::StrCat(".", BaseName(folder), ".lock"));
  const absl::Status locked = claim->Lock(lock, absl::StrCat(field, " ", folder), console, flock);
  if (!locked.ok()) return locked;
  return claim;
}

FolderClaim::~FolderClaim() {
  lock_.reset();
  for (const std::string& path : created_) env_->RemoveEmptyFolder(path).IgnoreError();
}

absl::Status CannotWriteFolder(const std::string& folder, const absl::Status& status) {
  return CannotWrite(absl::StrCat("output_dir ", folder), status);
}

}  // namespace qlora::engine
