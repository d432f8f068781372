// A folder that one run has to itself. The lock is the system's and goes with the process, so that
// a kill leaves nothing to clear away.

#ifndef QLORA_ENGINE_CHECKPOINT_FOLDER_CLAIM_H_
#define QLORA_ENGINE_CHECKPOINT_FOLDER_CLAIM_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/io/env.h"
#include "engine/io/file_lock.h"
#include "engine/report/console.h"

namespace qlora::engine {

// In a folder that a run has now, or had when it was killed.
inline constexpr char kLockFile[] = ".run.lock";

class FolderClaim {
 public:
  // Creates what is missing of `folder` and locks it. Refused, with nothing changed, where another
  // run has it (exit 64, naming that one's process and machine) and where it can't be written (exit
  // 74). Where its file system has no locks the console is warned, and two runs are not kept apart.
  static absl::StatusOr<std::unique_ptr<FolderClaim>> Take(
      Env* env, const std::string& folder, Console* console,
      const FileLock::Flock& flock = FileLock::SystemFlock());
  // The same for a folder that is replaced as a whole, which a lock in it would not survive: locked
  // is ".<name>.lock" beside it. `field` is the job's that names the folder.
  static absl::StatusOr<std::unique_ptr<FolderClaim>> TakeBeside(
      Env* env, const std::string& folder, const char* field, Console* console,
      const FileLock::Flock& flock = FileLock::SystemFlock());
  // Gives it back. Folders that were created for it go if nothing was put into them.
  ~FolderClaim();

  // False where the file system has no locks: another run may write there too.
  bool is_locked() const { return lock_ != nullptr; }

 private:
  explicit FolderClaim(Env* env) : env_(env) {}
  absl::Status Lock(const std::string& path, const std::string& what, Console* console,
                    const FileLock::Flock& flock);

  Env* const env_;
  std::vector<std::string> created_;  // innermost first
  std::unique_ptr<FileLock> lock_;
};

// "output_dir <folder> cannot be written: ...", exit 74.
absl::Status CannotWriteFolder(const std::string& folder, const absl::Status& status);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_CHECKPOINT_FOLDER_CLAIM_H_
