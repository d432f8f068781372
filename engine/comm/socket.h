// Stream sockets between the ranks of a job: TCP between machines, unix(7) within one. Blocking
// calls with deadlines; a broken or closed connection is an Unavailable status.

#ifndef QLORA_ENGINE_COMM_SOCKET_H_
#define QLORA_ENGINE_COMM_SOCKET_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/comm/address.h"

namespace qlora::engine {

class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket();

  // At the first of the rendezvous' addresses that is this machine's; AlreadyExists where its port
  // or name is taken.
  static absl::StatusOr<Socket> Listen(const std::string& rendezvous,
                                       const ResolveHost& resolve = ResolveBySystem);
  // To the first of its addresses at which somebody listens, all tried again until the deadline.
  static absl::StatusOr<Socket> Connect(const std::string& rendezvous, double seconds,
                                        const ResolveHost& resolve = ResolveBySystem);

  // The next connection, DeadlineExceeded where none comes in time. A connection over unix(7) from
  // another user is dropped.
  absl::StatusOr<Socket> Accept(double seconds);

  // All of the bytes, or an error.
  absl::Status Send(absl::string_view bytes, double seconds);
  absl::Status Receive(char* bytes, int64_t count, double seconds);
  // What is there now, up to `count` bytes: 0 where nothing is, Unavailable where the other side
  // has closed.
  absl::StatusOr<int64_t> ReceiveSome(char* bytes, int64_t count);

  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_SOCKET_H_
