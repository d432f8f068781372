// One constructor per class of failure. Canonical codes of Abseil are too coarse (a full disk and a
// full GPU are both kResourceExhausted), so each status made here also carries its exit code as a
// payload; see proto/exit_codes.h.
#ifndef QLORA_PROTO_ERRORS_H_
#define QLORA_PROTO_ERRORS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace qlora::proto {

// A message names what failed, where (file, tensor, offset, line or field path), what was found,
// what is allowed and what to do.

absl::Status BadJobError(absl::string_view message);       // kInvalidArgument, 64
absl::Status BadDataError(absl::string_view message);      // kDataLoss, 65: contents are wrong
absl::Status MissingFileError(absl::string_view message);  // kNotFound, 65
absl::Status NoDeviceError(absl::string_view message);     // kUnavailable, 69
absl::Status DoesNotFitError(absl::string_view message);   // kResourceExhausted, 71
// `error_number` is errno at the failed call, or 0; its text is appended. 74 whatever the code.
absl::Status IoError(absl::string_view message, int error_number = 0);
absl::Status PeerLostError(absl::string_view message);  // kDeadlineExceeded, 75: trying again helps
absl::Status NumbersBadError(absl::string_view message);  // kAborted, 76: NaN or infinity
absl::Status GateMissedError(absl::string_view message);  // kFailedPrecondition, 79
// The run ended on `signal_number` (SIGINT, SIGTERM) with its checkpoint saved: 128 + number.
absl::Status StoppedError(int signal_number, absl::string_view message);

// The error that another process ended with: of its class, with its code. `exit_code` is not 0.
absl::Status ErrorOfExitCode(int exit_code, absl::string_view message);

// True for statuses made by the constructors above.
bool HasExitCode(const absl::Status& status);

// `status` with "context: " before its message; code and payloads stay. An ok status stays ok.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

}  // namespace qlora::proto

#endif  // QLORA_PROTO_ERRORS_H_
