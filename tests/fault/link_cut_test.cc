// Two ranks in network namespaces of their own; then the link between them goes down. Each says who
// is silent, in time. Needs root, and iproute2.
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/comm/control_channel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"
#include "tests/support/fault_scale.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;

constexpr double kSilence = 0.5;  // seconds; 60 by default
constexpr char kPlace[] = "10.77.0.1:29517";

bool Shell(const std::string& command) {
  return std::system(absl::StrCat("(", command, ") >/dev/null 2>&1").c_str()) == 0;
}

class LinkCut : public testing::Test {
 protected:
  void SetUp() override {
    if (!Make()) GTEST_SKIP() << "no network namespaces can be made here";
  }
  ~LinkCut() override {
    Shell(absl::StrCat("ip netns del ", Space(0), "; ip netns del ", Space(1)));
  }

  static std::string Space(int rank) { return absl::StrCat("qlora", getpid(), "r", rank); }
  static bool Make() {
    std::string commands = absl::StrCat("ip netns add ", Space(0), " && ip netns add ", Space(1),
                                        " && ip link add v0 netns ", Space(0),
                                        " type veth peer name v1 netns ", Space(1));
    for (const int rank : {0, 1}) {
      absl::StrAppend(&commands, " && ip -n ", Space(rank), " addr add 10.77.0.", rank + 1,
                      "/24 dev v", rank, " && ip -n ", Space(rank), " link set v", rank, " up");
    }
    return Shell(commands);
  }
  // The calling thread, and those it starts, see this rank's network from now on.
  static void EnterSpace(int rank) {
    const int fd = open(absl::StrCat("/var/run/netns/", Space(rank)).c_str(), O_RDONLY | O_CLOEXEC);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(setns(fd, CLONE_NEWNET), 0);
    close(fd);
  }
};

TEST_F(LinkCut, EachNamesTheOtherInTime) {
  const int rounds = tests::Times(3, 50);
  for (int round = 0; round < rounds; ++round) {
    absl::Status found[2];
    double seconds[2] = {};
    std::atomic<int> ready{0};
    std::atomic<bool> cut{false};
    std::vector<std::thread> threads;
    for (const int rank : {0, 1}) {
      threads.emplace_back([&, rank] {
        EnterSpace(rank);
        const auto channel = ControlChannel::Join(
            {rank, 2, kPlace}, {.silence_seconds = kSilence, .join_seconds = 20});
        ASSERT_TRUE(channel.ok()) << channel.status();
        ASSERT_TRUE((*channel)->AllGather("before", "x").ok());
        ++ready;
        while (!cut) std::this_thread::yield();
        const auto begin = std::chrono::steady_clock::now();
        // One waits for the other in an agreement, the other computes.
        if (rank == 0) {
          found[0] = (*channel)->AllGather("behind the cut", "x").status();
        } else {
          (*channel)->Enter(Phase::kComputing, "step 7");
          while (found[1].ok()) {
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
            found[1] = (*channel)->CheckOthers();
          }
        }
        seconds[rank] =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      });
    }
    while (ready < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ASSERT_TRUE(Shell(absl::StrCat("ip -n ", Space(0), " link set v0 down")));
    cut = true;
    for (std::thread& thread : threads) thread.join();
    ASSERT_TRUE(Shell(absl::StrCat("ip -n ", Space(0), " link set v0 up")));
    for (const int rank : {0, 1}) {
      EXPECT_EQ(proto::ExitCodeOf(found[rank]), proto::kExitPeerLost) << found[rank];
      EXPECT_THAT(std::string(found[rank].message()),
                  HasSubstr(absl::StrCat("rank ", 1 - rank, " ")));
      EXPECT_LT(seconds[rank], kSilence + 2);
    }
    EXPECT_THAT(std::string(found[0].message()), HasSubstr("was silent for"));
  }
}

}  // namespace
}  // namespace qlora::engine
