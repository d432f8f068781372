// The exit codes of `qlora_engine`, one per class of failure.
#ifndef QLORA_PROTO_EXIT_CODES_H_
#define QLORA_PROTO_EXIT_CODES_H_

#include "absl/status/status.h"

namespace qlora::proto {

// 64 to 76 follow sysexits.h where it has the class; 79 is the first behind its last; 128 + n is
// the shell's code for signal n.
enum ExitCode : int {
  kExitDone = 0,
  kExitBadJob = 64,
  kExitBadData = 65,
  kExitNoDevice = 69,
  kExitOurBug = 70,  // none of the user's doing
  kExitDoesNotFit = 71,
  kExitIo = 74,
  kExitPeerLost = 75,
  kExitNumbersBad = 76,
  kExitGateMissed = 79,    // done, results written, but not as good as the job asks
  kExitInterrupted = 130,  // SIGINT, checkpoint saved
  kExitTerminated = 143,   // SIGTERM, checkpoint saved
};

// The process exit code for `status`.
//
// A status made by a function of proto/errors.h carries its code as a payload, which survives
// Annotate(). Any other status, from a layer below proto say, is mapped by its canonical code:
//   kInvalidArgument                                          64
//   kDataLoss kNotFound kFailedPrecondition kOutOfRange kAlreadyExists   65
//   kUnimplemented kUnavailable                               69
//   kInternal                                                 70
//   kResourceExhausted                                        71
//   kUnknown kPermissionDenied kUnauthenticated kAborted      74
//   kDeadlineExceeded                                         75
//   kCancelled                                               130
int ExitCodeOf(const absl::Status& status);

}  // namespace qlora::proto

#endif  // QLORA_PROTO_EXIT_CODES_H_
