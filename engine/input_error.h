// What went wrong with something the user handed in: a file's contents (exit code 65) or the disk
// under it (74).

#ifndef QLORA_ENGINE_INPUT_ERROR_H_
#define QLORA_ENGINE_INPUT_ERROR_H_

#include "absl/status/status.h"
#include "engine/io/env.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"

namespace qlora::engine {

// The same message under the class it belongs to. A status that already carries its class stays as
// it is.
inline absl::Status AsInputError(const absl::Status& status) {
  if (status.ok() || proto::HasExitCode(status)) return status;
  if (IsIoError(status)) return proto::IoError(status.message());
  if (absl::IsNotFound(status)) return proto::MissingFileError(status.message());
  return proto::BadDataError(status.message());
}

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_INPUT_ERROR_H_
