// Two ranks in network namespaces of their own; then the link between them goes down. Each says who
// is silent, in time. Needs root and iproute2.
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

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

constexpr double kSilence = 1;  // seconds; 60 by default
constexpr char kPlace[] = "10.77.0.1:29517";

bool Shell(const std::string& command) {
  return std::system(absl::StrCat("(", command, ") >/dev/null 2>&1").c_str()) == 0;
}

// Two network namespaces with a link between them.
class Link {
 public:
  explicit Link(int number) : number_(number) {}
  ~Link() { Shell(absl::StrCat("ip netns del ", Space(0), "; ip netns del ", Space(1))); }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // False where the system has or allows none.
  bool Make() const {
    std::string commands = absl::StrCat("ip netns add ", Space(0), " && ip netns add ", Space(1),
                                        " && ip link add v0 netns ", Space(0),
                                        " type veth peer name v1 netns ", Space(1));
    for (const int rank : {0, 1}) {
      absl::StrAppend(&commands, " && ip -n ", Space(rank), " addr add 10.77.0.", rank + 1,
                      "/24 dev v", rank, " && ip -n ", Space(rank), " link set v", rank, " up");
    }
    return Shell(commands);
  }
  bool Cut() const { return Shell(absl::StrCat("ip -n ", Space(0), " link set v0 down")); }
  // The calling thread, and those it starts, see this rank's network from now on.
  void Enter(int rank) const {
    const int fd = open(absl::StrCat("/var/run/netns/", Space(rank)).c_str(), O_RDONLY | O_CLOEXEC);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(setns(fd, CLONE_NEWNET), 0);
    close(fd);
  }

 private:
  std::string Space(int rank) const {
    return absl::StrCat("qlora", getpid(), "n", number_, "r", rank);
  }

  const int number_;
};

// What the two ranks of a job say when their link is cut, and after how long.
struct Outcome {
  absl::Status found[2];
  double seconds[2] = {};
};

// One of them waits for the other in an agreement, the other computes.
void BeRank(int rank, const Link& link, std::atomic<int>* ready, const std::atomic<bool>* cut,
            Outcome* outcome) {
  link.Enter(rank);
  const auto channel =
      ControlChannel::Join({rank, 2, kPlace}, {.silence_seconds = kSilence, .join_seconds = 20});
  const absl::Status met =
      channel.ok() ? (*channel)->AllGather("before", "x").status() : channel.status();
  ++*ready;
  ASSERT_TRUE(met.ok()) << met;
  while (!*cut) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const auto begin = std::chrono::steady_clock::now();
  absl::Status& found = outcome->found[rank];
  if (rank == 0) {
    found = (*channel)->AllGather("behind the cut", "x").status();
  } else {
    (*channel)->Enter(Phase::kComputing, "step 7");
    while (found.ok()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      found = (*channel)->CheckOthers();
    }
  }
  outcome->seconds[rank] =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

Outcome CutOnce(const Link& link) {
  Outcome outcome;
  std::atomic<int> ready{0};
  std::atomic<bool> cut{false};
  std::vector<std::thread> ranks;
  for (const int rank : {0, 1}) {
    ranks.emplace_back([&, rank] { BeRank(rank, link, &ready, &cut, &outcome); });
  }
  while (ready < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(link.Cut());
  cut = true;
  for (std::thread& rank : ranks) rank.join();
  return outcome;
}

// Beside each other: what cuts take is waiting.
TEST(LinkCut, EachNamesTheOtherInTime) {
  const int cuts = tests::Times(10, 50);
  std::vector<std::unique_ptr<Link>> links;
  for (int i = 0; i < cuts; ++i) {
    links.push_back(std::make_unique<Link>(i));
    if (!links.back()->Make()) GTEST_SKIP() << "no network namespaces can be made here";
  }
  std::vector<Outcome> outcomes(cuts);
  std::vector<std::thread> threads;
  for (int i = 0; i < cuts; ++i) {
    threads.emplace_back([&, i] { outcomes[i] = CutOnce(*links[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Outcome& outcome : outcomes) {
    for (const int rank : {0, 1}) {
      const absl::Status& found = outcome.found[rank];
      EXPECT_EQ(proto::ExitCodeOf(found), proto::kExitPeerLost) << found;
      EXPECT_THAT(std::string(found.message()), HasSubstr(absl::StrCat("rank ", 1 - rank, " ")));
      EXPECT_LT(outcome.seconds[rank], kSilence + 2);
    }
    EXPECT_THAT(std::string(outcome.found[0].message()), HasSubstr("was silent for"));
  }
}

}  // namespace
}  // namespace qlora::engine
