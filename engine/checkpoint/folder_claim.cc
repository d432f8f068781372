#include "engine/checkpoint/folder_claim.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/errors.h"

namespace qlora::engine {

absl::StatusOr<std::unique_ptr<FolderClaim>> FolderClaim::Take(Env* env, const std::string& folder,
                                                               Console* console,
                                                               const FileLock::Flock& flock) {
  std::unique_ptr<FolderClaim> claim(new FolderClaim(env));
  for (std::string path = folder; !env->IsFolder(path); path = ParentPath(path)) {
    claim->created_.push_back(path);
    if (ParentPath(path) == path) break;
  }
  if (absl::Status s = env->CreateFolders(folder); !s.ok()) return CannotWriteFolder(folder, s);
  absl::StatusOr<std::unique_ptr<FileLock>> lock =
      FileLock::Take(JoinPath(folder, kLockFile),
                     absl::StrCat("process ", env->ProcessId(), " on ", env->HostName()), flock);
  if (absl::IsUnavailable(lock.status())) {
    return proto::BadJobError(
        absl::StrCat("output_dir ", folder, " is in use by another run: ", lock.status().message(),
                     ". Wait until it has ended, or give this job an output_dir of its own"));
  }
  if (absl::IsUnimplemented(lock.status())) {
    console->Warning(absl::StrCat("output_dir ", folder, " can't be locked (",
                                  lock.status().message(),
                                  "): make sure that no other run writes there"));
    return claim;
  }
  if (!lock.ok()) return CannotWriteFolder(folder, lock.status());
  claim->lock_ = *std::move(lock);
  return claim;
}

FolderClaim::~FolderClaim() {
  lock_.reset();
  for (const std::string& path : created_) env_->RemoveEmptyFolder(path).IgnoreError();
}

absl::Status CannotWriteFolder(const std::string& folder, const absl::Status& status) {
  return proto::IoError(
      absl::StrCat("output_dir ", folder, " cannot be written: ", status.message()));
}

}  // namespace qlora::engine
