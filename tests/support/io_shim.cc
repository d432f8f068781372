// A library to be preloaded into the program: counts what it asks of files below a folder and makes
// one of these calls fail, or all from it on.
//   QLORA_SHIM_FOLDER   names of files begin with it
//   QLORA_SHIM_FAIL_AT  number of the call, from 1; 0: none
//   QLORA_SHIM_ERROR    errno; EINTR: once, as a signal would; −1: half of what is to be written
//   QLORA_SHIM_FOREVER  set: all later ones too
//   QLORA_SHIM_COUNT    file that gets the number of calls, when the program ends
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace {

std::atomic<long> calls{0};

template <class F>
F* Real(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

bool IsBelow(const char* path) {
  static const char* const folder = getenv("QLORA_SHIM_FOLDER");
  return folder != nullptr && strncmp(path, folder, strlen(folder)) == 0;
}

bool IsBelow(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t n = readlink(link, path, sizeof(path) - 1);
  if (n <= 0) return false;
  path[n] = '\0';
  return IsBelow(path);
}

int Number(const char* name) {
  const char* const text = getenv(name);
  return text == nullptr ? 0 : atoi(text);
}

// The error that this call must fail with; 0: none.
int Enter() {
  static const int fail_at = Number("QLORA_SHIM_FAIL_AT"), error = Number("QLORA_SHIM_ERROR");
  static const bool forever = getenv("QLORA_SHIM_FOREVER") != nullptr;
  const long call = ++calls;
  const bool fails = fail_at > 0 && (call == fail_at || (forever && call > fail_at));
  return fails ? error : 0;
}

struct Reporter {
  ~Reporter() {
    const char* const path = getenv("QLORA_SHIM_COUNT");
    if (path == nullptr) return;
    if (FILE* file = fopen(path, "w")) {
      fprintf(file, "%ld", calls.load());
      fclose(file);
    }
  }
} reporter;

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t count) {
  static auto* const real = Real<ssize_t(int, const void*, size_t)>("write");
  if (!IsBelow(fd)) return real(fd, data, count);
  const int error = Enter();
  if (error == 0) return real(fd, data, count);
  if (error < 0) return real(fd, data, (count + 1) / 2);
  errno = error;
  return -1;
}

#define QLORA_SHIM(result, name, parameters, arguments, below) \
  result name parameters {                                     \
    static auto* const real = Real<result parameters>(#name);  \
    const int error = (below) ? Enter() : 0;                   \
    if (error <= 0) return real arguments;                     \
    errno = error;                                             \
    return -1;                                                 \
  }

QLORA_SHIM(int, fsync, (int fd), (fd), IsBelow(fd))
QLORA_SHIM(int, fdatasync, (int fd), (fd), IsBelow(fd))
QLORA_SHIM(int, rename, (const char* from, const char* to), (from, to), IsBelow(to))
QLORA_SHIM(int, mkdir, (const char* path, mode_t mode), (path, mode), IsBelow(path))
QLORA_SHIM(int, unlink, (const char* path), (path), IsBelow(path))
QLORA_SHIM(int, rmdir, (const char* path), (path), IsBelow(path))

int open(const char* path, int flags, ...) {
  static auto* const real = Real<int(const char*, int, ...)>("open");
  va_list more;
  va_start(more, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(more, mode_t) : 0;
  va_end(more);
  const bool writes = (flags & (O_WRONLY | O_RDWR)) != 0;
  const int error = writes && IsBelow(path) ? Enter() : 0;
  if (error <= 0) return real(path, flags, mode);
  errno = error;
  return -1;
}

// A close that fails has closed all the same.
int close(int fd) {
  static auto* const real = Real<int(int)>("close");
  const bool writes = (fcntl(fd, F_GETFL) & (O_WRONLY | O_RDWR)) != 0;
  const int error = writes && IsBelow(fd) ? Enter() : 0;
  const int result = real(fd);
  if (error <= 0) return result;
  errno = error;
  return -1;
}

}  // extern "C"
