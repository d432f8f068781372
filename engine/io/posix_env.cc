#include "engine/io/posix_env.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/uninterrupted.h"

namespace qlora::engine {

PosixCalls::PosixCalls() : read(::read), write(::write), fsync(::fsync), close(::close) {}

namespace {

using kernels::Uninterrupted;

absl::Status CheckPath(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("a path is empty");
  if (path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("a path holds a NUL byte: ", path.substr(0, path.find('\0')), "\\0..."));
  }
  return absl::OkStatus();
}

absl::Status NotRegular(const std::string& path, mode_t mode) {
  const char* kind = S_ISDIR(mode)                    ? "a folder"
                     : S_ISFIFO(mode)                 ? "a FIFO"
                     : S_ISSOCK(mode)                 ? "a socket"
                     : S_ISCHR(mode) || S_ISBLK(mode) ? "a device"
                                                      : "of an unknown kind";
  return absl::InvalidArgumentError(
      absl::StrCat(path, " is ", kind, ", but a regular file is needed"));
}

FileStat ToFileStat(const struct stat& info) {
  FileStat stat;
  stat.kind = S_ISREG(info.st_mode)   ? FileStat::Kind::kFile
              : S_ISDIR(info.st_mode) ? FileStat::Kind::kFolder
              : S_ISLNK(info.st_mode) ? FileStat::Kind::kSymlink
                                      : FileStat::Kind::kOther;
  stat.size = info.st_size;
  return stat;
}

// Closes on scope exit; closing an input can't lose data, so its result is not asked for.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  Fd(Fd&& other) : fd_(std::exchange(other.fd_, -1)) {}
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

class PosixWritableFile : public WritableFile {
 public:
  PosixWritableFile(const PosixCalls& calls, std::string path, int fd)
      : calls_(calls), path_(std::move(path)), fd_(fd) {}
  ~PosixWritableFile() override {
    if (fd_ >= 0) ::close(fd_);
  }

  using WritableFile::Append;
  absl::Status Append(absl::string_view bytes) override {
    if (fd_ < 0) return absl::FailedPreconditionError(absl::StrCat(path_, " is closed"));
    while (!bytes.empty()) {
      const ssize_t n =
          Uninterrupted([&] { return calls_.write(fd_, bytes.data(), bytes.size()); });
      if (n < 0) return ErrnoStatus(errno, "write", path_);
      if (n == 0) return ErrnoStatus(EIO, "write", path_);  // would loop for ever
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return absl::OkStatus();
  }

  // A failed fsync must not be repeated: the system may have dropped the pages and call the next
  // one clean.
  absl::Status Sync() override {
    if (fd_ < 0) return absl::FailedPreconditionError(absl::StrCat(path_, " is closed"));
    if (Uninterrupted([&] { return calls_.fsync(fd_); }) != 0)
      return ErrnoStatus(errno, "sync", path_);
    return absl::OkStatus();
  }

  absl::Status Close() override {
    if (fd_ < 0) return absl::OkStatus();
    // On Linux the descriptor is gone even after EINTR: closing again could hit another thread's
    // file.
    const int result = calls_.close(std::exchange(fd_, -1));
    if (result != 0 && errno != EINTR) return ErrnoStatus(errno, "close", path_);
    return absl::OkStatus();
  }

 private:
  const PosixCalls& calls_;
  std::string path_;
  int fd_;
};

class PosixReadableFile : public ReadableFile {
 public:
  PosixReadableFile(const PosixCalls& calls, std::string path, Fd fd, int64_t size)
      : calls_(calls), path_(std::move(path)), fd_(std::move(fd)), size_(size) {}

  absl::StatusOr<int64_t> Read(absl::Span<char> buffer) override {
    size_t filled = 0;
    while (filled < buffer.size()) {
      const ssize_t n = Uninterrupted(
          [&] { return calls_.read(fd_.get(), buffer.data() + filled, buffer.size() - filled); });
      if (n < 0) return ErrnoStatus(errno, "read", path_);
      if (n == 0) break;
      filled += static_cast<size_t>(n);
    }
    return static_cast<int64_t>(filled);
  }
  int64_t size() const override { return size_; }

 private:
  const PosixCalls& calls_;
  std::string path_;
  Fd fd_;
  int64_t size_;
};

void ReleasePages(absl::Span<const uint8_t> part) {
  const uintptr_t page = uintptr_t(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(part.data()) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(part.data()) + part.size()) / page * page;
  // A hint: where it fails the pages merely stay.
  if (begin < end) (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

class PosixEnv : public Env {
 public:
  explicit PosixEnv(PosixCalls calls) : calls_(std::move(calls)) {}

  absl::StatusOr<std::unique_ptr<WritableFile>> NewWritableFile(const std::string& path) override {
    return OpenForWriting(path, O_TRUNC, "create");
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> NewAppendableFile(
      const std::string& path) override {
    return OpenForWriting(path, O_APPEND, "append to");
  }

  absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) override {
    auto file = NewReadableFile(path);
    if (!file.ok()) return file.status();
    const int64_t size = (*file)->size();
    if (size > max_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(path, " has ", size, " bytes, but at most ",
                                                     max_bytes, " are allowed for such a file"));
    }
    std::string contents(static_cast<size_t>(size), '\0');
    auto filled = (*file)->Read(absl::MakeSpan(contents));
    if (!filled.ok()) return filled.status();
    contents.resize(
        static_cast<size_t>(*filled));  // truncated meanwhile: what is there is the file
    return contents;
  }

  absl::StatusOr<std::unique_ptr<ReadableFile>> NewReadableFile(const std::string& path) override {
    int64_t size = 0;
    auto fd = OpenForReading(path, &size);
    if (!fd.ok()) return fd.status();
    return std::unique_ptr<ReadableFile>(new PosixReadableFile(calls_, path, *std::move(fd), size));
  }

  absl::StatusOr<MappedFile> MapFile(const std::string& path) override {
    int64_t size = 0;
    auto fd = OpenForReading(path, &size);
    if (!fd.ok()) return fd.status();
    if (size == 0) return MappedFile();  // mmap refuses length 0
    const size_t length = static_cast<size_t>(size);
    void* address = ::mmap(nullptr, length, PROT_READ, MAP_PRIVATE, fd->get(), 0);
    if (address == MAP_FAILED) return ErrnoStatus(errno, "map", path);
    std::shared_ptr<const void> owner(
        address, [length](const void* p) { ::munmap(const_cast<void*>(p), length); });
    return MappedFile(std::move(owner), {static_cast<const uint8_t*>(address), length},
                      &ReleasePages);
  }

  absl::Status CreateFolder(const std::string& path) override {
    if (absl::Status status = CheckPath(path); !status.ok()) return status;
    if (::mkdir(path.c_str(), 0777) != 0) return ErrnoStatus(errno, "create folder", path);
    return absl::OkStatus();
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    for (const std::string& path : {from, to}) {
      if (absl::Status status = CheckPath(path); !status.ok()) return status;
    }
    if (::rename(from.c_str(), to.c_str()) != 0) {
      return ErrnoStatus(errno, absl::StrCat("rename ", from, " to"), to);
    }
    return absl::OkStatus();
  }

  absl::Status SyncFolder(const std::string& path) override {
    if (absl::Status status = CheckPath(path); !status.ok()) return status;
    Fd fd(Uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
    if (fd.get() < 0) return ErrnoStatus(errno, "open folder", path);
    const int result = Uninterrupted([&] { return calls_.fsync(fd.get()); });
    // Some network and FUSE file systems have no such notion and say EINVAL.
    if (result != 0 && errno != EINVAL) return ErrnoStatus(errno, "sync folder", path);
    return absl::OkStatus();
  }

  absl::Status RemoveFile(const std::string& path) override {
    if (absl::Status status = CheckPath(path); !status.ok()) return status;
    if (::unlink(path.c_str()) != 0) return ErrnoStatus(errno, "remove", path);
    return absl::OkStatus();
  }

  absl::Status RemoveEmptyFolder(const std::string& path) override {
    if (absl::Status status = CheckPath(path); !status.ok()) return status;
    if (::rmdir(path.c_str()) != 0) return ErrnoStatus(errno, "remove folder", path);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    if (absl::Status status = CheckPath(path); !status.ok()) return status;
    std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), ::closedir);
    if (folder == nullptr) return ErrnoStatus(errno, "list", path);
    std::vector<std::string> names;
    for (;;) {
      errno = 0;
      const dirent* entry = ::readdir(folder.get());
      if (entry == nullptr) break;
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    if (errno != 0) return ErrnoStatus(errno, "list", path);
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::StatusOr<FileStat> Stat(const std::string& path, bool follow) override {
    if (absl::Status status = CheckPath(path); !status.ok()) return status;
    struct stat info;
    const int result = follow ? ::stat(path.c_str(), &info) : ::lstat(path.c_str(), &info);
    if (result != 0) return ErrnoStatus(errno, "look at", path);
    return ToFileStat(info);
  }

  absl::StatusOr<int64_t> FreeSpace(const std::string& path) override {
    if (absl::Status status = CheckPath(path); !status.ok()) return status;
    struct statvfs info;
    if (::statvfs(path.c_str(), &info) != 0) return ErrnoStatus(errno, "ask for space at", path);
    return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
  }

  double NowSeconds() override { return ClockSeconds(CLOCK_REALTIME); }
  double MonotonicSeconds() override { return ClockSeconds(CLOCK_MONOTONIC); }

  std::string RandomId() override {
    uint64_t bits = 0;
    // 8 bytes are never returned short; before the pool is ready the call waits.
    const ssize_t n = Uninterrupted([&] { return ::getrandom(&bits, sizeof(bits), 0); });
    if (n != static_cast<ssize_t>(sizeof(bits))) {  // a kernel or sandbox without the call
      bits = static_cast<uint64_t>(NowSeconds() * 1e9) ^ (static_cast<uint64_t>(::getpid()) << 40);
    }
    return absl::StrFormat("%016x", bits);
  }

  std::string HostName() override {
    char name[256] = {};
    if (::gethostname(name, sizeof(name) - 1) != 0) return "unknown";
    return IsPlainName(name) ? name : "unknown";
  }

  int64_t ProcessId() override { return ::getpid(); }

 private:
  static double ClockSeconds(clockid_t clock) {
    timespec now;
    ::clock_gettime(clock, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> OpenForWriting(const std::string& path, int flags,
                                                               absl::string_view what) {
    if (absl::Status status = CheckPath(path); !status.ok()) return status;
    struct stat info;
    // Asked first: opening a FIFO waits for a reader, opening a device may do anything.
    if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
      return NotRegular(path, info.st_mode);
    }
    const int fd = Uninterrupted(
        [&] { return ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0666); });
    if (fd < 0) return ErrnoStatus(errno, what, path);
    return std::unique_ptr<WritableFile>(new PosixWritableFile(calls_, path, fd));
  }

  absl::StatusOr<Fd> OpenForReading(const std::string& path, int64_t* size) {
    if (absl::Status status = CheckPath(path); !status.ok()) return status;
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "open", path);
    if (!S_ISREG(info.st_mode)) return NotRegular(path, info.st_mode);
    Fd fd(Uninterrupted(
        [&] { return ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC); }));
    if (fd.get() < 0) return ErrnoStatus(errno, "open", path);
    // Asked again of what was opened: the name may lead elsewhere by now.
    if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "look at", path);
    if (!S_ISREG(info.st_mode)) return NotRegular(path, info.st_mode);
    *size = info.st_size;
    return fd;
  }

  const PosixCalls calls_;
};

}  // namespace

std::unique_ptr<Env> NewPosixEnv(PosixCalls calls) {
  return std::make_unique<PosixEnv>(std::move(calls));
}

Env* Env::Default() {
  static Env* const env = NewPosixEnv(PosixCalls()).release();  // never destroyed: used at exit too
  return env;
}

}  // namespace qlora::engine
