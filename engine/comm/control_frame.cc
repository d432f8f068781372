#include "engine/comm/control_frame.h"

#include <cstring>

namespace qlora::engine {
namespace {

constexpr uint32_t kMagic = 0x31434c51;  // "QLC1"

}  // namespace

std::string EncodeFrame(const proto::ControlMessage& message) {
  const std::string body = message.SerializeAsString();
  const uint32_t header[2] = {kMagic, uint32_t(body.size())};
  std::string frame(kFrameHeader, '\0');
  std::memcpy(frame.data(), header, kFrameHeader);
  return frame + body;
}

absl::StatusOr<int64_t> MessageLength(absl::string_view header, int64_t max_bytes) {
  uint32_t words[2];
  std::memcpy(words, header.data(), kFrameHeader);
  if (words[0] != kMagic || words[1] > max_bytes) {
    return absl::DataLossError("this is no message of qlora_engine");
  }
  return int64_t{words[1]};
}

absl::Status TakeMessages(std::string* arrived, std::vector<proto::ControlMessage>* messages) {
  const absl::string_view all = *arrived;
  size_t taken = 0;
  absl::Status status;
  while (int64_t(all.size() - taken) >= kFrameHeader) {
    const absl::string_view rest = all.substr(taken);
    const absl::StatusOr<int64_t> length = MessageLength(rest);
    if (!length.ok()) {
      status = length.status();
      break;
    }
    if (int64_t(rest.size()) < kFrameHeader + *length) break;
    proto::ControlMessage message;
    if (!message.ParseFromArray(rest.data() + kFrameHeader, int(*length))) {
      status = absl::DataLossError("a message can't be read");
      break;
    }
    messages->push_back(std::move(message));
    taken += size_t(kFrameHeader + *length);
  }
  arrived->erase(0, taken);
  return status;
}

}  // namespace qlora::engine
