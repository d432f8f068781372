#include "engine/comm/address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace qlora::engine {
namespace {

bool IsLocalName(const std::string& rendezvous) {
  return !rendezvous.empty() && rendezvous[0] == '@';
}

SocketAddress LocalAddress(const std::string& rendezvous) {
  SocketAddress address;
  auto* name = reinterpret_cast<sockaddr_un*>(&address.storage);
  const size_t length = std::min(rendezvous.size() - 1, sizeof(name->sun_path) - 1);
  name->sun_family = AF_UNIX;
  // A leading zero byte: a name that lives and dies with its socket, no file.
  std::memcpy(name->sun_path + 1, rendezvous.data() + 1, length);
  address.length = socklen_t(offsetof(sockaddr_un, sun_path) + 1 + length);
  return address;
}

struct HostAndPort {
  std::string host;
  int port = 0;
};

// "node1:29500", "10.0.0.1:29500", "[fe80::1]:29500".
absl::StatusOr<HostAndPort> Split(const std::string& rendezvous) {
  const size_t colon = std::min(rendezvous.rfind(':'), rendezvous.size());
  HostAndPort place{.host = rendezvous.substr(0, colon)};
  if (place.host.size() >= 2 && place.host.front() == '[' && place.host.back() == ']') {
    place.host = place.host.substr(1, place.host.size() - 2);
  }
  if (place.host.empty() || colon == rendezvous.size() ||
      !absl::SimpleAtoi(rendezvous.substr(colon + 1), &place.port) || place.port < 1 ||
      place.port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("found \"", rendezvous, "\"; allowed: HOST:PORT with a port from 1 to 65535"));
  }
  return place;
}

bool IsInNumbers(const std::string& host) {
  in6_addr any;
  return inet_pton(AF_INET, host.c_str(), &any) == 1 ||
         inet_pton(AF_INET6, host.substr(0, host.find('%')).c_str(), &any) == 1;
}

// The address itself, or, of a loopback address, all of the machine's of its family.
SocketAddress BeyondLoopback(SocketAddress address) {
  if (address.family() == AF_INET) {
    auto* ip = reinterpret_cast<sockaddr_in*>(&address.storage);
    constexpr uint32_t kLoopbackNet = 127;  // 127.0.0.0/8
    if (ntohl(ip->sin_addr.s_addr) >> 24 == kLoopbackNet) ip->sin_addr.s_addr = htonl(INADDR_ANY);
  } else if (address.family() == AF_INET6) {
    auto* ip = reinterpret_cast<sockaddr_in6*>(&address.storage);
    if (IN6_IS_ADDR_LOOPBACK(&ip->sin6_addr)) ip->sin6_addr = in6addr_any;
  }
  return address;
}

}  // namespace

absl::StatusOr<std::vector<SocketAddress>> ResolveBySystem(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("host ", host, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> list(found, freeaddrinfo);
  std::vector<SocketAddress> addresses;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    addresses.emplace_back();
    std::memcpy(&addresses.back().storage, one->ai_addr, one->ai_addrlen);
    addresses.back().length = one->ai_addrlen;
  }
  return addresses;
}

absl::StatusOr<std::vector<SocketAddress>> AddressesToReach(const std::string& rendezvous,
                                                            const ResolveHost& resolve) {
  if (IsLocalName(rendezvous)) return std::vector<SocketAddress>{LocalAddress(rendezvous)};
  const absl::StatusOr<HostAndPort> place = Split(rendezvous);
  if (!place.ok()) return place.status();
  return resolve(place->host, place->port);
}

absl::StatusOr<std::vector<SocketAddress>> AddressesToListenAt(const std::string& rendezvous,
                                                               const ResolveHost& resolve) {
  absl::StatusOr<std::vector<SocketAddress>> addresses = AddressesToReach(rendezvous, resolve);
  if (!addresses.ok() || IsLocalName(rendezvous)) return addresses;
  const std::string host = Split(rendezvous)->host;
  if (IsInNumbers(host) || host == "localhost") return addresses;
  for (SocketAddress& address : *addresses) address = BeyondLoopback(address);
  return addresses;
}

}  // namespace qlora::engine
