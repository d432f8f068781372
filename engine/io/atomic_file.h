// One file, replaced as a whole: written beside its place, synced, renamed over it, name synced.
#ifndef QLORA_ENGINE_IO_ATOMIC_FILE_H_
#define QLORA_ENGINE_IO_ATOMIC_FILE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/io/env.h"

namespace qlora::engine {

// A file that appears at `path`, complete and durable, when Close returns OK. Until then, and after
// any error, whatever was there stays, or, if only the last sync failed, the new one; a temporary
// ".tmp-<name>-<id>" beside it is removed, or left to CleanTemporaries if the process dies.
absl::StatusOr<std::unique_ptr<WritableFile>> NewAtomicFile(Env* env, const std::string& path);

absl::Status AtomicWriteFile(Env* env, const std::string& path, absl::string_view contents);

// Prefix of everything that is not finished yet.
inline constexpr char kTemporaryPrefix[] = ".tmp-";
// A folder that is being replaced waits under this prefix, then its name, "-" and an id.
inline constexpr char kReplacedPrefix[] = ".tmp-replaced-";
// Removes what a dead process left unfinished in the folder, and takes back what it moved away
// without putting the new one in place. To be called at start, before anything is looked for, and
// only in a folder that no other process writes to. OK if there is no such folder.
absl::Status CleanTemporaries(Env* env, const std::string& folder);
// Only what was to become `name`, which no other process writes: the folder may be anybody's.
absl::Status CleanTemporariesOf(Env* env, const std::string& folder, absl::string_view name);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_ATOMIC_FILE_H_
