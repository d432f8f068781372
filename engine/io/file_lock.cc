#include "engine/io/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/io/env.h"

namespace qlora::engine {
namespace {

constexpr size_t kMaxHolder = 200;  // bytes of text

// What the holder wrote, fit to be shown.
std::string HolderOf(int fd) {
  char text[kMaxHolder];
  const ssize_t n = ::pread(fd, text, sizeof(text), 0);
  std::string holder(text, n > 0 ? size_t(n) : 0);
  for (char& c : holder) {
    if (c < ' ' || c > '~') c = '?';
  }
  return holder.empty() ? "another process" : holder;
}

// Whether `fd` is what `path` leads to.
bool IsNamed(int fd, const std::string& path) {
  struct stat open, named;
  return ::fstat(fd, &open) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

bool IsRegular(int fd) {
  struct stat info;
  return ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
}

}  // namespace

// Unlike the older locks of fcntl, one of flock is not lost when another descriptor of the file is
// closed. Over NFS the system makes one of those of it, which other machines see.
FileLock::Flock FileLock::SystemFlock() { return ::flock; }

absl::StatusOr<std::unique_ptr<FileLock>> FileLock::Take(const std::string& path,
                                                         absl::string_view holder,
                                                         const Flock& flock) {
  for (;;) {
    const int fd =
        ::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    if (fd < 0) return ErrnoStatus(errno, "lock", path);
    std::unique_ptr<FileLock> lock(new FileLock("", fd));  // without a name it removes none
    if (!IsRegular(fd)) {
      return absl::InvalidArgumentError(absl::StrCat(path, " is no regular file"));
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return absl::UnavailableError(HolderOf(fd));
      const absl::Status failed = ErrnoStatus(errno, "lock", path);
      (void)::unlink(path.c_str());
      return absl::UnimplementedError(failed.message());
    }
    // Given back since it was opened, it is a file without a name: another may lock its successor.
    if (!IsNamed(fd, path)) continue;
    // For people only: a disk that is full is found by who writes what counts.
    holder = holder.substr(0, kMaxHolder);
    if (::ftruncate(fd, 0) == 0) {
      [[maybe_unused]] const ssize_t n = ::pwrite(fd, holder.data(), holder.size(), 0);
    }
    lock->path_ = path;
    return lock;
  }
}

// The name goes first: who locks the file behind it must see that it is nobody's any more.
FileLock::~FileLock() {
  if (!path_.empty()) (void)::unlink(path_.c_str());
  ::close(fd_);
}

}  // namespace qlora::engine
