// A rendezvous (World::rendezvous) as addresses of sockets.

#ifndef QLORA_ENGINE_COMM_ADDRESS_H_
#define QLORA_ENGINE_COMM_ADDRESS_H_

#include <sys/socket.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace qlora::engine {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  int family() const { return storage.ss_family; }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

// All addresses of a host, given by name or in numbers, at a port; Unavailable where there are
// none.
using ResolveHost =
    std::function<absl::StatusOr<std::vector<SocketAddress>>(const std::string& host, int port)>;
absl::StatusOr<std::vector<SocketAddress>> ResolveBySystem(const std::string& host, int port);

// Where rank 0 may be reached, to be tried in this order: the host's addresses, or the one of
// "@name". InvalidArgument where the text is no rendezvous.
absl::StatusOr<std::vector<SocketAddress>> AddressesToReach(
    const std::string& rendezvous, const ResolveHost& resolve = ResolveBySystem);

// Where rank 0 listens. A machine often knows its own name as a loopback address (Debian:
// 127.0.1.1), at which no other machine gets through: then it is all addresses of the machine.
// Loopback in numbers, or as "localhost", is what was asked for.
absl::StatusOr<std::vector<SocketAddress>> AddressesToListenAt(
    const std::string& rendezvous, const ResolveHost& resolve = ResolveBySystem);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_COMM_ADDRESS_H_
