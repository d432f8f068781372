// Env over the POSIX calls. The calls that can be interrupted or come back short are taken from a
// table, so that a test can make them do so.
#ifndef QLORA_ENGINE_IO_POSIX_ENV_H_
#define QLORA_ENGINE_IO_POSIX_ENV_H_

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <memory>

#include "engine/io/env.h"

namespace qlora::engine {

// Same contracts as the system calls: -1 and errno on failure. The defaults are the system calls.
struct PosixCalls {
  std::function<ssize_t(int, void*, size_t)> read;
  std::function<ssize_t(int, const void*, size_t)> write;
  std::function<int(int)> fsync;
  std::function<int(int)> close;

  PosixCalls();
};

std::unique_ptr<Env> NewPosixEnv(PosixCalls calls);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_POSIX_ENV_H_
