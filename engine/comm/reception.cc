#include "engine/comm/reception.h"

#include <poll.h>

#include <algorithm>
#include <optional>

#include "engine/comm/control_frame.h"
#include "engine/comm/now.h"

namespace qlora::engine {
namespace {

using proto::ControlMessage;

// Reads on in a first message, of which `arrived` is there: the hello when it is whole, none
// before. An error where it is no hello.
absl::StatusOr<std::optional<ControlMessage::Hello>> ReadOn(Socket* socket, std::string* arrived) {
  int64_t length = 0;
  if (int64_t(arrived->size()) >= kFrameHeader) {
    absl::StatusOr<int64_t> announced =
        MessageLength(absl::string_view(*arrived).substr(0, kFrameHeader), kMaxGreeting);
    if (!announced.ok()) return announced.status();
    length = *announced;
  }
  const size_t before = arrived->size();
  const int64_t missing = kFrameHeader + length - int64_t(before);
  arrived->resize(before + missing);
  const absl::StatusOr<int64_t> got = socket->ReceiveSome(arrived->data() + before, missing);
  arrived->resize(before + (got.ok() ? *got : 0));
  if (!got.ok()) return got.status();
  if (length == 0 || *got < missing) return std::nullopt;
  ControlMessage message;
  if (!message.ParseFromArray(arrived->data() + kFrameHeader, int(length)) ||
      !message.has_hello()) {
    return absl::DataLossError("no hello");
  }
  return message.hello();
}

}  // namespace

absl::StatusOr<std::vector<bool>> Reception::Wait(double deadline) {
  std::vector<pollfd> waits = {{listener_.fd(), POLLIN, 0}};
  for (const Newcomer& newcomer : newcomers_) {
    waits.push_back({newcomer.socket.fd(), POLLIN, 0});
    deadline = std::min(deadline, newcomer.deadline);
  }
  const double left = std::clamp(deadline - Now(), 0.0, 1e6);
  std::vector<bool> spoken(newcomers_.size());
  if (poll(waits.data(), waits.size(), int(left * 1000) + 1) <= 0) return spoken;
  for (size_t i = 0; i < spoken.size(); ++i) spoken[i] = waits[i + 1].revents != 0;
  if (waits[0].revents == 0) return spoken;
  absl::StatusOr<Socket> socket = listener_.Accept(0);
  if (absl::IsDeadlineExceeded(socket.status())) return spoken;  // gone again
  if (!socket.ok()) return socket.status();
  newcomers_.push_back({.socket = *std::move(socket), .deadline = Now() + kHelloSeconds});
  return spoken;
}

absl::StatusOr<Reception::Guest> Reception::Next(double seconds) {
  const double deadline = Now() + seconds;
  while (true) {
    absl::StatusOr<std::vector<bool>> spoken = Wait(deadline);
    if (!spoken.ok()) return spoken.status();
    std::vector<Newcomer> silent;
    std::optional<Guest> guest;
    for (size_t i = 0; i < newcomers_.size(); ++i) {
      Newcomer& newcomer = newcomers_[i];
      // At most one is received at a time: what others have said waits.
      const bool speaks = i < spoken->size() && (*spoken)[i] && !guest;
      if (speaks) {
        auto hello = ReadOn(&newcomer.socket, &newcomer.arrived);
        if (!hello.ok()) continue;
        if (hello->has_value()) {
          guest = Guest{std::move(newcomer.socket), **std::move(hello)};
          continue;
        }
      } else if (Now() >= newcomer.deadline) {
        continue;
      }
      silent.push_back(std::move(newcomer));
    }
    newcomers_ = std::move(silent);
    if (guest) return *std::move(guest);
    if (Now() >= deadline) return absl::DeadlineExceededError("nobody came");
  }
}

}  // namespace qlora::engine
