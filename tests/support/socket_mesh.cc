#include "tests/support/socket_mesh.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>

namespace qlora::tests {
namespace {

// How often one that waits asks whether the others are still there.
constexpr int kPollMilliseconds = 20;

class SocketLink : public engine::HostLink {
 public:
  SocketLink(const std::vector<int>& ends, engine::ControlChannel* control)
      : ends_(ends), control_(*control) {}

  absl::Status Exchange(int to, const void* send, int64_t send_bytes, int from, void* receive,
                        int64_t receive_bytes) override {
    const char* out = static_cast<const char*>(send);
    char* in = static_cast<char*>(receive);
    int64_t to_send = to < 0 ? 0 : send_bytes, to_receive = from < 0 ? 0 : receive_bytes;
    while (to_send > 0 || to_receive > 0) {
      pollfd waits[2] = {{to_send > 0 ? ends_[to] : -1, POLLOUT, 0},
                         {to_receive > 0 ? ends_[from] : -1, POLLIN, 0}};
      ::poll(waits, 2, kPollMilliseconds);
      if (waits[0].revents != 0) {
        const ssize_t n = ::send(waits[0].fd, out, size_t(to_send), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) out += n, to_send -= n;
      }
      if (waits[1].revents != 0) {
        const ssize_t n = ::recv(waits[1].fd, in, size_t(to_receive), MSG_DONTWAIT);
        if (n > 0) in += n, to_receive -= n;
      }
      if (absl::Status s = control_.CheckOthers(); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

 private:
  const std::vector<int>& ends_;
  engine::ControlChannel& control_;
};

}  // namespace

SocketMesh::SocketMesh(int size) : ends_(size, std::vector<int>(size, -1)) {
  for (int rank = 0; rank < size; ++rank) {
    for (int peer = 0; peer < rank; ++peer) {
      int ends[2];
      if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) std::abort();
      ends_[rank][peer] = ends[0];
      ends_[peer][rank] = ends[1];
    }
  }
}

SocketMesh::~SocketMesh() {
  for (const std::vector<int>& ends : ends_) {
    for (const int end : ends) {
      if (end >= 0) ::close(end);
    }
  }
}

std::unique_ptr<engine::HostLink> SocketMesh::Open(engine::ControlChannel* control) const {
  return std::make_unique<SocketLink>(ends_[control->rank()], control);
}

}  // namespace qlora::tests
