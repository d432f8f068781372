// How rank 0 receives the other ranks. Whoever connects has a few seconds to say who it is, all of
// them side by side: strangers who say nothing, or something else, hold up nobody.

#ifndef QLORA_ENGINE_COMM_RECEPTION_H_
#define QLORA_ENGINE_COMM_RECEPTION_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/comm/socket.h"
#include "proto/control.pb.h"

namespace qlora::engine {

// For a rank's first message; whoever needs longer is dropped.
inline constexpr double kHelloSeconds = 5;

class Reception {
 public:
  explicit Reception(Socket listener) : listener_(std::move(listener)) {}

  struct Guest {
    Socket socket;
    proto::ControlMessage::Hello hello;
  };
  // The next that says hello; DeadlineExceeded where none does in time.
  absl::StatusOr<Guest> Next(double seconds);

 private:
  struct Newcomer {
    Socket socket;
    double deadline = 0;
    std::string arrived;  // of its first message
  };
  // Waits until somebody comes or speaks, is to be dropped, or `deadline` is there; returns which
  // of the newcomers have spoken.
  absl::StatusOr<std::vector<bool>> Wait(double deadline);

  Socket listener_;
  std::vector<Newcomer> newcomers_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_RECEPTION_H_
