// A checkpoint folder that is whole or not there. The protocol, and why each step:
//   1. write every file in .tmp-checkpoint-<step>-<id>/ and sync it      (contents durable)
//   2. write and sync the manifest last: size, CRC-32C and SHA-256 of each (what whole means)
//   3. sync the folder                                                    (names in it durable)
//   4. rename to checkpoint-<step>                                        (appears at once)
//   5. sync the parent, then acknowledge                                  (its name durable)
// Older checkpoints go only after 5. "Newest" is the newest whose manifest verifies, not the
// highest name.
#ifndef QLORA_ENGINE_IO_ATOMIC_FOLDER_H_
#define QLORA_ENGINE_IO_ATOMIC_FOLDER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/io/env.h"
#include "engine/io/manifest.h"
#include "proto/manifest.pb.h"

namespace qlora::engine {

struct CommitInfo {
  int64_t step = 0;      // optimizer steps done
  int32_t world = 1;     // ranks that wrote it
  std::string job_hash;  // opaque
};

// "checkpoint-<step>", and its inverse: nullopt for any other name (signs, leading zeros, int64
// overflow).
std::string CheckpointName(int64_t step);
std::optional<int64_t> CheckpointStep(absl::string_view name);

// Writes one checkpoint. Not thread safe. Destroyed without Commit it removes what it wrote.
class FolderCommit {
 public:
  // Whether a folder can be committed under this name: plain, and none that another's temporary
  // could be taken for.
  static bool TakesName(absl::string_view name);
  // Starts in `parent`, which must exist. `name` is the folder's final name.
  static absl::StatusOr<std::unique_ptr<FolderCommit>> Begin(Env* env, const std::string& parent,
                                                             const std::string& name);
  ~FolderCommit();
  FolderCommit(const FolderCommit&) = delete;
  FolderCommit& operator=(const FolderCommit&) = delete;

  // A file of the folder. Its Close syncs, so closing is all the caller does. The object must
  // outlive it.
  absl::StatusOr<std::unique_ptr<WritableFile>> NewFile(const std::string& name);
  absl::Status AddFile(const std::string& name, absl::string_view contents);
  // Where the files lie until Commit.
  const std::string& temporary_path() const { return temporary_; }

  // Steps 2 to 5. A folder of that name (of a step done again after a resume) is first moved to a
  // temporary name, from which CleanTemporaries takes it back if the new one never came: one of
  // both always stands. After an error the old state stands, or, if only the last sync failed, the
  // new.
  absl::Status Commit(const CommitInfo& info);

 private:
  class File;
  FolderCommit(Env* env, std::string parent, std::string name);
  absl::Status WriteManifest(const CommitInfo& info);
  absl::Status Rename();

  Env* env_;
  std::string parent_;
  std::string name_;
  std::string temporary_;
  int open_files_ = 0;
  bool failed_ = false;
  bool renamed_ = false;
  proto::FolderManifest manifest_;
};

// VerifyFolder, and that the folder is named after the step that its manifest has.
absl::StatusOr<proto::FolderManifest> VerifyCheckpoint(Env* env, const std::string& path,
                                                       VerifyDepth depth = VerifyDepth::kChecksums);

struct NewestCheckpoint {
  std::optional<std::string> path;  // nullopt if none verifies
  proto::FolderManifest manifest;   // of it
  // Newer ones that were refused, newest first: path and reason. To be shown loudly.
  std::vector<std::pair<std::string, absl::Status>> refused;
};

// The checkpoint-<step> folder of the highest step that verifies. A failing disk is an error, not a
// damaged checkpoint: nobody should start from scratch because of a bad cable.
absl::StatusOr<NewestCheckpoint> FindNewestValid(Env* env, const std::string& parent);

// Of the checkpoints up to `current_step`, keeps the `keep_last` newest (at least one) and `best`
// (a folder name in `parent`, may be empty) and removes the others, oldest first. Each is renamed
// to a temporary name before its files go, so that a half-removed one is never taken for a
// checkpoint. Call only after the commit of `current_step` was acknowledged. Later ones, which a
// resume refused, are neither counted nor touched: counting them would throw away a good one for a
// damaged one. Returns the names removed.
absl::StatusOr<std::vector<std::string>> RemoveOldest(Env* env, const std::string& parent,
                                                      int64_t current_step, int64_t keep_last,
                                                      const std::string& best);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_ATOMIC_FOLDER_H_
