#include "engine/comm/socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/comm/now.h"

namespace qlora::engine {
namespace {

constexpr auto kRetryPause = std::chrono::milliseconds(50);
// For one of a host's addresses: behind a firewall nobody refuses.
constexpr double kAttemptSeconds = 5;

absl::Status Failed(absl::string_view what, int error) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(error)));
}

// Waits until `events` can be done without blocking.
absl::Status Await(int fd, short events, double deadline) {
  while (true) {
    const double left = std::max(0.0, deadline - Now());
    pollfd poll_fd{fd, events, 0};
    const int ready = poll(&poll_fd, 1, int(std::min(left, 1e6) * 1000) + 1);
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return Failed("poll", errno);
    if (Now() >= deadline) return absl::DeadlineExceededError("no answer in time");
  }
}

absl::StatusOr<Socket> Open(const SocketAddress& address) {
  Socket socket(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return Failed("socket", errno);
  return socket;
}

absl::StatusOr<Socket> ListenAt(const SocketAddress& address) {
  absl::StatusOr<Socket> socket = Open(address);
  if (!socket.ok()) return socket.status();
  const int one = 1;
  setsockopt(socket->fd(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (bind(socket->fd(), address.get(), address.length) == 0 &&
      listen(socket->fd(), SOMAXCONN) == 0) {
    return socket;
  }
  if (errno == EADDRINUSE) return absl::AlreadyExistsError(std::strerror(EADDRINUSE));
  return absl::UnavailableError(std::strerror(errno));
}

absl::StatusOr<Socket> ConnectTo(const SocketAddress& address, double deadline) {
  absl::StatusOr<Socket> socket = Open(address);
  if (!socket.ok()) return socket.status();
  int error = connect(socket->fd(), address.get(), address.length) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    if (absl::Status s = Await(socket->fd(), POLLOUT, deadline); !s.ok()) return s;
    socklen_t length = sizeof(error);
    getsockopt(socket->fd(), SOL_SOCKET, SO_ERROR, &error, &length);
  }
  if (error != 0) return absl::UnavailableError(std::strerror(error));
  return socket;
}

// Small messages go out at once. Fails on unix(7), where it is not needed.
void SendAtOnce(int fd) {
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

bool IsOfThisUser(int fd) {
  sockaddr_storage own{};
  socklen_t length = sizeof(own);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length) != 0) return false;
  if (own.ss_family != AF_UNIX) return true;
  ucred credentials{};
  length = sizeof(credentials);
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0 &&
         credentials.uid == getuid();
}

}  // namespace

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<Socket> Socket::Listen(const std::string& rendezvous, const ResolveHost& resolve) {
  absl::StatusOr<std::vector<SocketAddress>> addresses = AddressesToListenAt(rendezvous, resolve);
  if (!addresses.ok()) return addresses.status();
  absl::Status status;
  for (const SocketAddress& address : *addresses) {
    absl::StatusOr<Socket> socket = ListenAt(address);
    if (socket.ok()) return socket;
    // Who waits for a place to become free need not know of addresses of other machines.
    if (status.ok() || absl::IsAlreadyExists(socket.status())) status = socket.status();
  }
  return absl::Status(status.code(),
                      absl::StrCat("listening at ", rendezvous, ": ", status.message()));
}

absl::StatusOr<Socket> Socket::Connect(const std::string& rendezvous, double seconds,
                                       const ResolveHost& resolve) {
  const double deadline = Now() + seconds;
  while (true) {
    // Resolved each time: the name of a machine that still boots may come later.
    absl::StatusOr<std::vector<SocketAddress>> addresses = AddressesToReach(rendezvous, resolve);
    if (absl::IsInvalidArgument(addresses.status())) return addresses.status();
    absl::Status status = addresses.status();
    if (addresses.ok()) {
      for (const SocketAddress& address : *addresses) {
        absl::StatusOr<Socket> socket =
            ConnectTo(address, std::min(deadline, Now() + kAttemptSeconds));
        if (socket.ok()) {
          SendAtOnce(socket->fd_);
          return socket;
        }
        status = absl::UnavailableError(
            absl::StrCat("connecting to ", rendezvous, ": ", socket.status().message()));
      }
    }
    if (Now() >= deadline) return status;
    std::this_thread::sleep_for(kRetryPause);
  }
}

absl::StatusOr<Socket> Socket::Accept(double seconds) {
  const double deadline = Now() + seconds;
  while (true) {
    if (absl::Status s = Await(fd_, POLLIN, deadline); !s.ok()) return s;
    Socket socket(accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) {
      if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) continue;
      return Failed("accept", errno);
    }
    if (!IsOfThisUser(socket.fd_)) continue;
    SendAtOnce(socket.fd_);
    return socket;
  }
}

absl::Status Socket::Send(absl::string_view bytes, double seconds) {
  const double deadline = Now() + seconds;
  while (!bytes.empty()) {
    const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      bytes.remove_prefix(size_t(sent));
    } else if (errno == EAGAIN) {
      if (absl::Status s = Await(fd_, POLLOUT, deadline); !s.ok()) return s;
    } else if (errno != EINTR) {
      return Failed("send", errno);
    }
  }
  return absl::OkStatus();
}

absl::Status Socket::Receive(char* bytes, int64_t count, double seconds) {
  const double deadline = Now() + seconds;
  while (count > 0) {
    absl::StatusOr<int64_t> got = ReceiveSome(bytes, count);
    if (!got.ok()) return got.status();
    bytes += *got;
    count -= *got;
    if (*got > 0) continue;
    if (absl::Status s = Await(fd_, POLLIN, deadline); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> Socket::ReceiveSome(char* bytes, int64_t count) {
  while (true) {
    const ssize_t got = recv(fd_, bytes, size_t(count), 0);
    if (got > 0) return int64_t(got);
    if (got == 0) return absl::UnavailableError("the connection was closed");
    if (errno == EAGAIN) return int64_t{0};
    if (errno != EINTR) return Failed("receive", errno);
  }
}

}  // namespace qlora::engine
