// A file that one process at a time has locked. Beside Env, not part of it: the lock is the
// system's, which ends it with the process, and a pretended disk has none.
#ifndef QLORA_ENGINE_IO_FILE_LOCK_H_
#define QLORA_ENGINE_IO_FILE_LOCK_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qlora::engine {

class FileLock {
 public:
  // As flock(2); a test may give another.
  using Flock = std::function<int(int fd, int operation)>;

  static Flock SystemFlock();

  // Creates the file, which must be nobody else's, and locks it without waiting. UNAVAILABLE, with
  // the `holder` of the one who has it, where it is locked; UNIMPLEMENTED where the file system has
  // no locks. Other errors as Env's.
  static absl::StatusOr<std::unique_ptr<FileLock>> Take(const std::string& path,
                                                        absl::string_view holder,
                                                        const Flock& flock = SystemFlock());
  // Gives it back; the file goes.
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  FileLock(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  std::string path_;
  const int fd_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_FILE_LOCK_H_
