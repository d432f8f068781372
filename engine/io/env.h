// The door to the outside: files, clock, randomness. Everything in the engine that touches a file
// goes through an Env, so a test can make the k-th operation fail or lose what was never synced.
//
// Paths are plain strings. Every error names the path and what the system said about it, and
// carries the errno as a payload, so that a failing disk can be told from a bad file (see
// IsIoError).
#ifndef QLORA_ENGINE_IO_ENV_H_
#define QLORA_ENGINE_IO_ENV_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace qlora::engine {

// A file being written from its start or its end. Not thread safe. Destroying it without Close
// gives the file back to the system with no promise about its contents.
class WritableFile {
 public:
  virtual ~WritableFile() = default;

  // Writes all of `bytes`, or fails; after a failure the file's end is unknown.
  virtual absl::Status Append(absl::string_view bytes) = 0;
  // After OK the contents survive a power cut. The file's *name* survives only after SyncFolder.
  virtual absl::Status Sync() = 0;
  // Closing does not sync. Must be called once; a second call does nothing.
  virtual absl::Status Close() = 0;

  absl::Status Append(absl::Span<const uint8_t> bytes) {
    return Append(absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
};

// A file being read from its start, for large files on disks that may fail: a map would raise
// SIGBUS where this returns an error. Not thread safe.
class ReadableFile {
 public:
  virtual ~ReadableFile() = default;

  // Fills `buffer` as far as the file reaches; returns the bytes read, less than asked only at the
  // end.
  virtual absl::StatusOr<int64_t> Read(absl::Span<char> buffer) = 0;
  // Bytes when it was opened.
  virtual int64_t size() const = 0;
};

// Read-only bytes of a whole file; unmapped when the last copy goes. Pages are read on first touch.
// A file that another process truncates meanwhile raises SIGBUS on touch: inputs must stay as they
// are.
class MappedFile {
 public:
  MappedFile() = default;
  // `release` (may be null) tells the system that bytes of the map are not needed in memory.
  using ReleaseFunction = void (*)(absl::Span<const uint8_t> part);
  MappedFile(std::shared_ptr<const void> owner, absl::Span<const uint8_t> bytes,
             ReleaseFunction release = nullptr)
      : owner_(std::move(owner)), bytes_(bytes), release_(release) {}

  absl::Span<const uint8_t> bytes() const { return bytes_; }
  const uint8_t* data() const { return bytes_.data(); }
  size_t size() const { return bytes_.size(); }
  // Gives the pages that lie wholly in `part` back to the system; a later touch reads them anew.
  void ReleasePages(absl::Span<const uint8_t> part) const {
    if (release_ != nullptr) release_(part);
  }

 private:
  std::shared_ptr<const void> owner_;
  absl::Span<const uint8_t> bytes_;
  ReleaseFunction release_ = nullptr;
};

struct FileStat {
  enum class Kind { kFile, kFolder, kSymlink, kOther };
  Kind kind = Kind::kOther;
  int64_t size = 0;  // bytes; meaningful for kFile
};

class Env {
 public:
  virtual ~Env() = default;

  // The real file system. Never null, never destroyed, thread safe.
  static Env* Default();

  // Files. Input must be a regular file, directly or through symlinks (the Hugging Face cache is
  // made of them); a FIFO, socket or device is refused with INVALID_ARGUMENT, since reading one may
  // never end.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> NewWritableFile(
      const std::string& path) = 0;
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> NewAppendableFile(
      const std::string& path) = 0;
  // Refused with INVALID_ARGUMENT, before anything is allocated, if the file is larger than
  // `max_bytes`.
  virtual absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) = 0;
  virtual absl::StatusOr<std::unique_ptr<ReadableFile>> NewReadableFile(
      const std::string& path) = 0;
  virtual absl::StatusOr<MappedFile> MapFile(const std::string& path) = 0;

  // Names. ALREADY_EXISTS if `path` is there.
  virtual absl::Status CreateFolder(const std::string& path) = 0;
  // Atomic; replaces a file or an empty folder at `to`. Both within one file system.
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  // After OK the names in the folder (not the contents behind them) survive a power cut.
  virtual absl::Status SyncFolder(const std::string& path) = 0;
  virtual absl::Status RemoveFile(const std::string& path) = 0;
  virtual absl::Status RemoveEmptyFolder(const std::string& path) = 0;
  // Names in the folder, sorted, without "." and "..".
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& path) = 0;
  // `follow`: a symlink is reported as what it leads to.
  virtual absl::StatusOr<FileStat> Stat(const std::string& path, bool follow) = 0;
  // Bytes an ordinary user can still write to the file system of `path`.
  virtual absl::StatusOr<int64_t> FreeSpace(const std::string& path) = 0;

  // Seconds since 1970; may jump.
  virtual double NowSeconds() = 0;
  // Seconds since some fixed moment; never goes back.
  virtual double MonotonicSeconds() = 0;
  // 16 hex digits, different at each call and in each process.
  virtual std::string RandomId() = 0;
  virtual std::string HostName() = 0;
  virtual int64_t ProcessId() = 0;

  // Built on the above. A path that can't be looked at counts as absent.
  bool Exists(const std::string& path);
  bool IsFolder(const std::string& path);
  // Where that would be wrong: only NOT_FOUND means absent, anything else is an error.
  absl::StatusOr<bool> IsPresent(const std::string& path);
  absl::StatusOr<int64_t> FileSize(const std::string& path);
  // Creates what is missing of `path`, each new name synced in its parent. OK if all is there.
  absl::Status CreateFolders(const std::string& path);
  // Removes a file, a symlink (never what it leads to), or a folder with all it holds. OK if
  // absent.
  absl::Status RemoveAll(const std::string& path);
};

// The status of a system call that failed: "cannot <what> <path>: <strerror>".
absl::Status ErrnoStatus(int error, absl::string_view what, absl::string_view path);
// True for statuses that a system call produced (a disk that fails or is full, a missing
// permission), as opposed to contents that are wrong. NOT_FOUND counts as neither.
bool IsIoError(const absl::Status& status);
// The errno that `status` carries, 0 if none.
int StatusErrno(const absl::Status& status);

// "a", "b" -> "a/b"; an absolute `name` is not special: callers check names with IsPlainName first.
std::string JoinPath(absl::string_view folder, absl::string_view name);
// "a/b" -> "a"; "b" -> "."; "/b" -> "/". A trailing slash is ignored.
std::string ParentPath(absl::string_view path);
// "a/b" -> "b".
std::string BaseName(absl::string_view path);
// Where `path` leads to: absolute, without links, "." and ".."; what is not there yet stays as
// written.
std::string ResolvedPath(const std::string& path);
// Whether `path` is `folder` or lies in it, both resolved.
bool IsWithin(absl::string_view path, absl::string_view folder);
// True for a name that stays in its folder: not empty, not "." or "..", no '/', '\\', NUL or
// control byte.
bool IsPlainName(absl::string_view name);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_ENV_H_
