#include "engine/comm/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/comm/socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

using testing::ElementsAre;

// A resolver that knows every name by these addresses.
ResolveHost KnownAs(const std::vector<std::string>& addresses) {
  return [=](const std::string&, int port) -> absl::StatusOr<std::vector<SocketAddress>> {
    std::vector<SocketAddress> all;
    for (const std::string& text : addresses) all.push_back(ResolveBySystem(text, port)->front());
    return all;
  };
}

std::vector<std::string> TextsOf(const absl::StatusOr<std::vector<SocketAddress>>& addresses) {
  std::vector<std::string> texts;
  if (!addresses.ok()) return {std::string(addresses.status().message())};
  for (const SocketAddress& address : *addresses) {
    char host[INET6_ADDRSTRLEN] = {};
    const bool is_v4 = address.family() == AF_INET;
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&address.storage);
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address.storage);
    inet_ntop(address.family(), is_v4 ? static_cast<const void*>(&v4->sin_addr) : &v6->sin6_addr,
              host, sizeof(host));
    texts.push_back(absl::StrCat(host, " ", ntohs(is_v4 ? v4->sin_port : v6->sin6_port)));
  }
  return texts;
}

// As /etc/hosts of Debian has it: the machine would listen where no other gets through.
TEST(Address, AMachineThatKnowsItselfAsLoopbackListensToOthers) {
  EXPECT_THAT(TextsOf(AddressesToListenAt("node1:29500", KnownAs({"127.0.1.1"}))),
              ElementsAre("0.0.0.0 29500"));
  EXPECT_THAT(TextsOf(AddressesToListenAt("node1:29500", KnownAs({"::1", "10.0.0.7"}))),
              ElementsAre(":: 29500", "10.0.0.7 29500"));
  EXPECT_THAT(TextsOf(AddressesToReach("node1:29500", KnownAs({"127.0.1.1"}))),
              ElementsAre("127.0.1.1 29500"));
}

TEST(Address, LoopbackThatIsAskedForIsKept) {
  EXPECT_THAT(TextsOf(AddressesToListenAt("127.0.0.1:4000")), ElementsAre("127.0.0.1 4000"));
  EXPECT_THAT(TextsOf(AddressesToListenAt("localhost:4000", KnownAs({"127.0.0.1"}))),
              ElementsAre("127.0.0.1 4000"));
  for (const char* place : {"[::1]:4000", "::1:4000"}) {
    EXPECT_THAT(TextsOf(AddressesToListenAt(place)), ElementsAre("::1 4000")) << place;
  }
}

// Listens at the first of a few ports that is free, which `place` then names.
absl::StatusOr<Socket> ListenSomewhere(const std::string& host, const ResolveHost& resolve,
                                       std::string* place) {
  absl::StatusOr<Socket> listener = absl::UnavailableError("no port was tried");
  for (int port = 23476; !listener.ok() && port < 23496; ++port) {
    *place = absl::StrCat(host, ":", port);
    listener = Socket::Listen(*place, resolve);
  }
  return listener;
}

TEST(Address, ListensAtTheFirstAddressOfThisMachine) {
  // The first is no machine's: a net for documents.
  std::string place;
  const auto listener = ListenSomewhere("node1", KnownAs({"192.0.2.1", "127.0.0.3"}), &place);
  ASSERT_TRUE(listener.ok()) << listener.status();
  const auto second = Socket::Listen(place, KnownAs({"127.0.0.3"}));
  EXPECT_TRUE(absl::IsAlreadyExists(second.status())) << second.status();
  // Nor does the other machine's hide that it is taken.
  const auto third = Socket::Listen(place, KnownAs({"192.0.2.1", "127.0.0.3", "203.0.113.1"}));
  EXPECT_TRUE(absl::IsAlreadyExists(third.status())) << third.status();
}

TEST(Address, ConnectsToTheFirstAddressThatListens) {
  std::string place;
  const auto listener = ListenSomewhere("127.0.0.3", ResolveBySystem, &place);
  ASSERT_TRUE(listener.ok()) << listener.status();
  const auto socket = Socket::Connect(place, 1, KnownAs({"127.0.0.4", "127.0.0.3"}));
  EXPECT_TRUE(socket.ok()) << socket.status();
  EXPECT_FALSE(Socket::Connect(place, 0.1, KnownAs({"127.0.0.4"})).ok());
}

}  // namespace
}  // namespace qlora::engine
