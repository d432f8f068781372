#include "engine/comm/socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace qlora::engine {
namespace {

constexpr auto kRetryPause = std::chrono::milliseconds(50);

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

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

struct Endpoint {
  sockaddr_storage address{};
  socklen_t length = 0;
};

absl::StatusOr<Endpoint> Resolve(const std::string& address, bool to_listen) {
  Endpoint endpoint;
  if (!address.empty() && address[0] == '@') {
    auto* name = reinterpret_cast<sockaddr_un*>(&endpoint.address);
    const size_t length = std::min(address.size() - 1, sizeof(name->sun_path) - 1);
    name->sun_family = AF_UNIX;
    // A leading zero byte: a name that lives and dies with its socket, no file.
    std::memcpy(name->sun_path + 1, address.data() + 1, length);
    endpoint.length = socklen_t(offsetof(sockaddr_un, sun_path) + 1 + length);
    return endpoint;
  }
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 1 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("found \"", address, "\"; allowed: HOST:PORT with a port from 1 to 65535"));
  }
  const std::string host = address.substr(0, colon);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = to_listen ? AI_PASSIVE : 0;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("host ", host, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> list(found, freeaddrinfo);
  std::memcpy(&endpoint.address, list->ai_addr, list->ai_addrlen);
  endpoint.length = list->ai_addrlen;
  return endpoint;
}

absl::StatusOr<Socket> Open(const Endpoint& endpoint) {
  Socket socket(
      ::socket(endpoint.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return Failed("socket", errno);
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

absl::StatusOr<Socket> Socket::Listen(const std::string& address) {
  absl::StatusOr<Endpoint> endpoint = Resolve(address, true);
  if (!endpoint.ok()) return endpoint.status();
  absl::StatusOr<Socket> socket = Open(*endpoint);
  if (!socket.ok()) return socket.status();
  const int one = 1;
  setsockopt(socket->fd_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  const auto* where = reinterpret_cast<const sockaddr*>(&endpoint->address);
  if (bind(socket->fd_, where, endpoint->length) != 0 || listen(socket->fd_, SOMAXCONN) != 0) {
    return Failed(absl::StrCat("listening at ", address), errno);
  }
  return socket;
}

absl::StatusOr<Socket> Socket::Connect(const std::string& address, double seconds) {
  const double deadline = Now() + seconds;
  while (true) {
    // Resolved each time: the name of a machine that still boots may come later.
    absl::StatusOr<Endpoint> endpoint = Resolve(address, false);
    if (absl::IsInvalidArgument(endpoint.status())) return endpoint.status();
    absl::Status status = endpoint.status();
    if (endpoint.ok()) {
      absl::StatusOr<Socket> socket = Open(*endpoint);
      if (!socket.ok()) return socket.status();
      const auto* where = reinterpret_cast<const sockaddr*>(&endpoint->address);
      int error = connect(socket->fd_, where, endpoint->length) == 0 ? 0 : errno;
      if (error == EINPROGRESS) {
        status = Await(socket->fd_, POLLOUT, deadline);
        socklen_t length = sizeof(error);
        if (status.ok()) getsockopt(socket->fd_, SOL_SOCKET, SO_ERROR, &error, &length);
      }
      if (error == 0 && status.ok()) {
        SendAtOnce(socket->fd_);
        return socket;
      }
      if (status.ok()) status = Failed(absl::StrCat("connecting to ", address), error);
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

void Socket::Shutdown() {
  if (fd_ >= 0) shutdown(fd_, SHUT_RDWR);
}

}  // namespace qlora::engine
