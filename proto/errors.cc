#include "proto/errors.h"

#include <cerrno>
#include <cstring>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"
#include "proto/exit_codes.h"

namespace qlora::proto {
namespace {

constexpr char kExitCodeUrl[] = "qlora.proto/exit_code";

absl::Status Make(absl::StatusCode code, absl::string_view message, int exit_code) {
  absl::Status status(code, message);
  status.SetPayload(kExitCodeUrl, absl::Cord(absl::StrCat(exit_code)));
  return status;
}

}  // namespace

absl::Status BadJobError(absl::string_view message) {
  return Make(absl::StatusCode::kInvalidArgument, message, kExitBadJob);
}

absl::Status BadDataError(absl::string_view message) {
  return Make(absl::StatusCode::kDataLoss, message, kExitBadData);
}

absl::Status MissingFileError(absl::string_view message) {
  return Make(absl::StatusCode::kNotFound, message, kExitBadData);
}

absl::Status NoDeviceError(absl::string_view message) {
  return Make(absl::StatusCode::kUnavailable, message, kExitNoDevice);
}

absl::Status DoesNotFitError(absl::string_view message) {
  return Make(absl::StatusCode::kResourceExhausted, message, kExitDoesNotFit);
}

absl::Status IoError(absl::string_view message, int error_number) {
  if (error_number == 0) return Make(absl::StatusCode::kUnknown, message, kExitIo);
  return Make(absl::ErrnoToStatusCode(error_number),
              absl::ErrnoToStatus(error_number, message).message(), kExitIo);
}

absl::Status PeerLostError(absl::string_view message) {
  return Make(absl::StatusCode::kDeadlineExceeded, message, kExitPeerLost);
}

absl::Status NumbersBadError(absl::string_view message) {
  return Make(absl::StatusCode::kAborted, message, kExitNumbersBad);
}

absl::Status GateMissedError(absl::string_view message) {
  return Make(absl::StatusCode::kFailedPrecondition, message, kExitGateMissed);
}

absl::Status StoppedError(int signal_number, absl::string_view message) {
  return Make(absl::StatusCode::kCancelled, message, 128 + signal_number);
}

absl::Status ErrorOfExitCode(int exit_code, absl::string_view message) {
  switch (exit_code) {
    case kExitBadJob:
      return BadJobError(message);
    case kExitBadData:
      return BadDataError(message);
    case kExitNoDevice:
      return NoDeviceError(message);
    case kExitDoesNotFit:
      return DoesNotFitError(message);
    case kExitIo:
      return IoError(message);
    case kExitPeerLost:
      return PeerLostError(message);
    case kExitNumbersBad:
      return NumbersBadError(message);
    case kExitGateMissed:
      return GateMissedError(message);
  }
  return Make(exit_code > 128 ? absl::StatusCode::kCancelled : absl::StatusCode::kInternal, message,
              exit_code);
}

bool HasExitCode(const absl::Status& status) { return status.GetPayload(kExitCodeUrl).has_value(); }

absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  absl::Status annotated(status.code(), absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    annotated.SetPayload(url, payload);
  });
  return annotated;
}

int ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return kExitDone;
  if (absl::optional<absl::Cord> payload = status.GetPayload(kExitCodeUrl)) {
    int code;
    if (absl::SimpleAtoi(std::string(*payload), &code)) return code;
  }
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return kExitBadJob;
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kAlreadyExists:
      return kExitBadData;
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kUnavailable:
      return kExitNoDevice;
    case absl::StatusCode::kResourceExhausted:
      return kExitDoesNotFit;
    case absl::StatusCode::kDeadlineExceeded:
      return kExitPeerLost;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    case absl::StatusCode::kInternal:
      return kExitOurBug;
    default:
      return kExitIo;
  }
}

}  // namespace qlora::proto
