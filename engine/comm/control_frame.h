// How the control channel's messages lie in a stream of bytes. A frame: magic and length, 4 bytes
// each in this machine's order, then the message.

#ifndef QLORA_ENGINE_COMM_CONTROL_FRAME_H_
#define QLORA_ENGINE_COMM_CONTROL_FRAME_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/control.pb.h"

namespace qlora::engine {

inline constexpr int64_t kFrameHeader = 8;
inline constexpr int64_t kMaxControlMessage = int64_t{256} << 20;
// Of who has not said yet that it is a rank of this job: any stranger may connect.
inline constexpr int64_t kMaxGreeting = 64 << 10;

std::string EncodeFrame(const proto::ControlMessage& message);

// Length of the message behind a header of kFrameHeader bytes; DataLoss where it is none, or would
// be longer than `max_bytes`.
absl::StatusOr<int64_t> MessageLength(absl::string_view header,
                                      int64_t max_bytes = kMaxControlMessage);

// Takes the whole messages off the front of what has arrived. DataLoss where bytes are no message;
// those before them are in `messages`.
absl::Status TakeMessages(std::string* arrived, std::vector<proto::ControlMessage>* messages);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_CONTROL_FRAME_H_
