#include "engine/comm/control_channel.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <iostream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/comm/control_frame.h"
#include "engine/comm/now.h"
#include "engine/comm/stop_request.h"
#include "engine/version.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/errors.h"
#include "proto/exit_codes.h"
#include "tests/support/no_threads.h"
#include "tests/support/thread_ranks.h"

namespace qlora::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using tests::NewRendezvous;
using tests::OnRanks;

TEST(ControlChannel, GathersByRankManyTimes) {
  OnRanks(4, {}, nullptr, [](Ranks& ranks, kernels::Device*) {
    for (int round = 0; round < 200; ++round) {
      const auto all = ranks.control().AllGather("round", absl::StrCat(ranks.rank(), ".", round));
      ASSERT_TRUE(all.ok()) << all.status();
      EXPECT_THAT(*all, ElementsAre(absl::StrCat("0.", round), absl::StrCat("1.", round),
                                    absl::StrCat("2.", round), absl::StrCat("3.", round)));
    }
    EXPECT_EQ(ranks.control().local_size(), 4);
    EXPECT_EQ(ranks.control().local_rank(), ranks.rank());
  });
}

TEST(ControlChannel, CarriesMegabytes) {
  const std::string large(8 << 20, 'x');
  OnRanks(3, {}, nullptr, [&](Ranks& ranks, kernels::Device*) {
    const auto text = ranks.control().FromFirst("text", ranks.is_first() ? large : "");
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_TRUE(*text == large);
  });
}

// The first port of a few that is free.
TEST(ControlChannel, MeetsOverTcp) {
  std::string rendezvous;
  for (int port = 23456; port < 23476; ++port) {
    rendezvous = absl::StrCat("127.0.0.1:", port);
    if (Socket::Listen(rendezvous).ok()) break;
  }
  std::thread second([&] {
    const auto channel = ControlChannel::Join({1, 2, rendezvous}, {.join_seconds = 10});
    ASSERT_TRUE(channel.ok()) << channel.status();
    EXPECT_THAT(*(*channel)->AllGather("names", "b"), ElementsAre("a", "b"));
  });
  const auto channel = ControlChannel::Join({0, 2, rendezvous}, {.join_seconds = 10});
  ASSERT_TRUE(channel.ok()) << channel.status();
  EXPECT_THAT(*(*channel)->AllGather("names", "a"), ElementsAre("a", "b"));
  second.join();
}

TEST(ControlChannel, RefusesAPlaceThatIsNone) {
  for (const char* place :
       {"nowhere", "host:", "host:0", "host:70000", "host:1x", ":29500", "[]:29500"}) {
    const auto channel = ControlChannel::Join({1, 2, place}, {.join_seconds = 10});
    EXPECT_EQ(proto::ExitCodeOf(channel.status()), proto::kExitBadJob) << place;
    EXPECT_THAT(std::string(channel.status().message()), HasSubstr("HOST:PORT")) << place;
  }
}

TEST(ControlChannel, AnAbortReachesAllWithItsExitCode) {
  OnRanks(3, {}, nullptr, [](Ranks& ranks, kernels::Device*) {
    if (ranks.rank() == 2) {
      ranks.control().Abort(proto::IoError("the disk of rank two is full"));
      return;
    }
    const double begin = Now();
    const auto all = ranks.control().AllGather("never complete", "");
    EXPECT_EQ(proto::ExitCodeOf(all.status()), proto::kExitIo);
    EXPECT_THAT(std::string(all.status().message()), HasSubstr("the disk of rank two is full"));
    EXPECT_LT(Now() - begin, 5);
  });
}

// Not even for one that has left in good order.
TEST(ControlChannel, NobodyWaitsForARankThatHasLeft) {
  for (const int leaver : {0, 2}) {
    OnRanks(3, {}, nullptr, [&](Ranks& ranks, kernels::Device*) {
      ASSERT_TRUE(ranks.control().AllGather("all are here", "").ok());
      if (ranks.rank() == leaver) return;
      const auto all = ranks.control().AllGather("one is not", "");
      EXPECT_EQ(proto::ExitCodeOf(all.status()), proto::kExitPeerLost) << all.status();
    });
  }
}

TEST(ControlChannel, RanksThatLoseStepAreNotMixedUp) {
  OnRanks(2, {}, nullptr, [](Ranks& ranks, kernels::Device*) {
    const auto all = ranks.control().AllGather(absl::StrCat("point ", ranks.rank()), "");
    EXPECT_EQ(proto::ExitCodeOf(all.status()), proto::kExitOurBug);
  });
}

// Some have had collectives that others had not: loading, with a machine to themselves. Who is
// behind afterwards is told all the same.
TEST(ControlChannel, CountsCollectivesAlikeAfterAnAgreement) {
  OnRanks(3, {.silence_seconds = 0.5}, nullptr, [](Ranks& ranks, kernels::Device*) {
    ControlChannel& control = ranks.control();
    for (int i = 0; i < 10 * ranks.rank(); ++i) {
      control.BeginCollective("among some");
      control.EndCollective();
    }
    ASSERT_TRUE(control.AllGather("all are here", "").ok());
    control.BeginCollective("the first");
    if (ranks.rank() != 1) {
      control.EndCollective();
      control.BeginCollective("the second");
    }
    while (!control.aborted()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_THAT(std::string(control.status().message()), HasSubstr("rank 1 does not get past"));
  });
}

TEST(ControlChannel, LastResortEndsAMainThreadThatHangs) {
  std::atomic<int> ended{0};
  ControlOptions options;
  options.last_resort = [&](const absl::Status& why) {
    EXPECT_EQ(proto::ExitCodeOf(why), proto::kExitNumbersBad);
    ++ended;
  };
  OnRanks(2, options, nullptr, [&](Ranks& ranks, kernels::Device*) {
    if (ranks.is_first()) ranks.control().Abort(proto::NumbersBadError("no number"));
    for (int i = 0; i < 500 && ended == 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
  EXPECT_GT(ended, 0);
}

TEST(ControlChannel, SaysWhoDidNotCome) {
  const auto alone =
      ControlChannel::Join({0, 3, NewRendezvous()}, {.silence_seconds = 1, .join_seconds = 0.3});
  EXPECT_EQ(proto::ExitCodeOf(alone.status()), proto::kExitPeerLost);
  EXPECT_THAT(std::string(alone.status().message()), HasSubstr("1, 2"));
  const auto without_first =
      ControlChannel::Join({1, 3, NewRendezvous()}, {.silence_seconds = 1, .join_seconds = 0.3});
  EXPECT_EQ(proto::ExitCodeOf(without_first.status()), proto::kExitPeerLost);
}

TEST(ControlChannel, ThoseWhoCameLearnWhoDidNot) {
  const std::string rendezvous = NewRendezvous();
  absl::Status other;
  std::thread second([&] {
    other = ControlChannel::Join({1, 3, rendezvous}, {.join_seconds = 10}).status();
  });
  const auto first = ControlChannel::Join({0, 3, rendezvous}, {.join_seconds = 1});
  second.join();
  for (const absl::Status& status : {first.status(), other}) {
    EXPECT_EQ(proto::ExitCodeOf(status), proto::kExitPeerLost) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("these ranks have not reached rank 0"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(": 2. See"));
  }
}

// By the run before, say, which is about to end.
TEST(ControlChannel, WaitsForAPlaceThatIsTaken) {
  const std::string rendezvous = NewRendezvous();
  auto taken = std::make_unique<absl::StatusOr<Socket>>(Socket::Listen(rendezvous));
  ASSERT_TRUE(taken->ok());
  const auto refused = ControlChannel::Join({0, 2, rendezvous}, {.join_seconds = 0.3});
  EXPECT_EQ(proto::ExitCodeOf(refused.status()), proto::kExitPeerLost) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("another program has it"));
  std::thread second([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    taken.reset();
    EXPECT_TRUE(ControlChannel::Join({1, 2, rendezvous}, {.join_seconds = 10}).ok());
  });
  EXPECT_TRUE(ControlChannel::Join({0, 2, rendezvous}, {.join_seconds = 10}).ok());
  second.join();
}

TEST(ControlChannel, WhoSaysNothingHoldsUpNobody) {
  const std::string rendezvous = NewRendezvous();
  std::vector<Socket> silent;
  std::thread second([&] {
    for (int i = 0; i < 10; ++i) {
      auto socket = Socket::Connect(rendezvous, 10);
      ASSERT_TRUE(socket.ok());
      silent.push_back(*std::move(socket));
    }
    EXPECT_TRUE(ControlChannel::Join({1, 2, rendezvous}, {.join_seconds = 10}).ok());
  });
  const double begin = Now();
  EXPECT_TRUE(ControlChannel::Join({0, 2, rendezvous}, {.join_seconds = 10}).ok());
  EXPECT_LT(Now() - begin, 4) << "one alone is waited for 5 s";
  second.join();
}

TEST(ControlChannel, AllHearOfASignalToOne) {
  for (const int asked : {0, 2}) {
    OnRanks(3, {}, nullptr, [&](Ranks& ranks, kernels::Device*) {
      StopFlag flag;
      if (ranks.rank() == asked) flag.signal = 15;
      StopRequest stop(&flag, &ranks);
      const double begin = Now();
      while (stop.Heard() == 0 && Now() - begin < 5) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      EXPECT_EQ(stop.Heard(), 15) << ranks.rank();
      EXPECT_EQ(*stop.Agree(), 15) << ranks.rank();
    });
  }
}

TEST(ControlChannel, RefusesRanksThatCountOtherwise) {
  const std::string rendezvous = NewRendezvous();
  absl::Status other;
  std::thread second([&] {
    other = ControlChannel::Join({1, 5, rendezvous}, {.join_seconds = 10}).status();
  });
  const auto first = ControlChannel::Join({0, 2, rendezvous}, {.join_seconds = 10});
  second.join();
  for (const absl::Status& status : {first.status(), other}) {
    EXPECT_EQ(proto::ExitCodeOf(status), proto::kExitBadJob) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("counts 5 ranks, rank 0 counts 2"));
  }
}

TEST(ControlChannel, RefusesAnotherBuild) {
  const std::string rendezvous = NewRendezvous();
  std::thread second([&] {
    auto socket = Socket::Connect(rendezvous, 10);
    ASSERT_TRUE(socket.ok());
    proto::ControlMessage message;
    message.mutable_hello()->set_version("9.9.9");
    message.mutable_hello()->set_world(2);
    message.mutable_hello()->set_rank(1);
    EXPECT_TRUE(socket->Send(EncodeFrame(message), 1).ok());
    char byte;
    EXPECT_TRUE(socket->Receive(&byte, 1, 4).ok()) << "it is told so";
  });
  const double begin = Now();
  const auto first = ControlChannel::Join({0, 2, rendezvous}, {.join_seconds = 10});
  EXPECT_LT(Now() - begin, 1);
  second.join();
  EXPECT_EQ(proto::ExitCodeOf(first.status()), proto::kExitBadJob);
  EXPECT_THAT(std::string(first.status().message()),
              HasSubstr(absl::StrCat("runs version 9.9.9, rank 0 version ", kEngineVersion)));
}

// At a port that two launches share, by chance: rank 0 goes on waiting for its own.
TEST(ControlChannel, RanksOfAnotherLaunchAreTurnedAway) {
  const std::string rendezvous = NewRendezvous();
  const World first{.rank = 0, .size = 2, .rendezvous = rendezvous, .launch = "7.0"};
  const auto rank_one = [&](const std::string& launch) {
    return ControlChannel::Join({.rank = 1, .size = 2, .rendezvous = rendezvous, .launch = launch},
                                {.join_seconds = 10})
        .status();
  };
  std::thread others([&] {
    for (const char* launch : {"7.1", ""}) {
      const absl::Status away = rank_one(launch);
      EXPECT_EQ(proto::ExitCodeOf(away), proto::kExitPeerLost) << away;
      EXPECT_THAT(std::string(away.message()), HasSubstr("another launch (7.0)"));
    }
    EXPECT_TRUE(rank_one("7.0").ok());
  });
  const auto channel = ControlChannel::Join(first, {.join_seconds = 10});
  EXPECT_TRUE(channel.ok()) << channel.status();
  others.join();
}

// Two that call themselves the same are a mistake; one that dies and is started again is not.
TEST(ControlChannel, ARankThatComesAgainIsTold) {
  for (const bool died : {false, true}) {
    const std::string rendezvous = NewRendezvous();
    std::thread others([&] {
      proto::ControlMessage message;
      message.mutable_hello()->set_version(kEngineVersion);
      message.mutable_hello()->set_world(3);
      message.mutable_hello()->set_rank(1);
      message.mutable_hello()->set_machine("m");
      auto before = Socket::Connect(rendezvous, 10);
      ASSERT_TRUE(before.ok());
      EXPECT_TRUE(before->Send(EncodeFrame(message), 1).ok());
      if (died) *before = Socket();
      const auto again = ControlChannel::Join({1, 3, rendezvous}, {.join_seconds = 10});
      EXPECT_EQ(proto::ExitCodeOf(again.status()), died ? proto::kExitPeerLost : proto::kExitBadJob)
          << again.status();
    });
    const auto first = ControlChannel::Join({0, 3, rendezvous}, {.join_seconds = 10});
    others.join();
    EXPECT_EQ(proto::ExitCodeOf(first.status()), died ? proto::kExitPeerLost : proto::kExitBadJob)
        << first.status();
  }
}

// As a batch system does, for longer than a rank may be silent.
TEST(ControlChannel, AJobThatIsSuspendedGoesOn) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    OnRanks(3, {.silence_seconds = 0.5}, nullptr, [&](Ranks& ranks, kernels::Device*) {
      if (ranks.is_first() && write(ready[1], "!", 1) != 1) _exit(1);
      for (int round = 0; round < 100; ++round) {
        const absl::Status met = ranks.control().AllGather("round", "").status();
        if (!met.ok()) {
          std::cerr << met << std::endl;
          _exit(2);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    });
    _exit(0);
  }
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  kill(child, SIGSTOP);
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  kill(child, SIGCONT);
  int status = 0;
  waitpid(child, &status, 0);
  close(ready[0]);
  close(ready[1]);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// The others, who are there already, learn why one is not.
TEST(ControlChannel, ARankWithoutAThreadEndsAll) {
  for (const int rank : {0, 1}) {
    const std::string rendezvous = NewRendezvous();
    const pid_t child = fork();
    if (child == 0) {
      const tests::NoThreads no_threads;
      _exit(proto::ExitCodeOf(
          ControlChannel::Join({rank, 2, rendezvous}, {.join_seconds = 10}).status()));
    }
    const auto channel = ControlChannel::Join({1 - rank, 2, rendezvous}, {.join_seconds = 10});
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), proto::kExitDoesNotFit);
    ASSERT_TRUE(channel.ok()) << channel.status();
    const auto all = (*channel)->AllGather("never complete", "");
    EXPECT_EQ(proto::ExitCodeOf(all.status()), proto::kExitDoesNotFit) << all.status();
    EXPECT_THAT(std::string(all.status().message()),
                HasSubstr(absl::StrCat("rank ", rank, ": the system refused the thread")));
  }
}

// Anything may knock at a TCP port.
TEST(ControlChannel, StrangersAtThePortDoNoHarm) {
  const std::string rendezvous = NewRendezvous();
  std::thread stranger([&] {
    auto socket = Socket::Connect(rendezvous, 10);
    ASSERT_TRUE(socket.ok());
    EXPECT_TRUE(socket->Send("GET / HTTP/1.1\r\n\r\n", 1).ok());
    // Nobody waits for the 200 MiB that another one announces.
    auto liar = Socket::Connect(rendezvous, 10);
    ASSERT_TRUE(liar.ok());
    std::string frame = EncodeFrame({});
    const uint32_t length = 200u << 20;
    std::memcpy(&frame[4], &length, sizeof(length));
    EXPECT_TRUE(liar->Send(frame, 1).ok());
    char byte;
    EXPECT_FALSE(absl::IsDeadlineExceeded(liar->Receive(&byte, 1, 4)));
  });
  std::thread second([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_TRUE(ControlChannel::Join({1, 2, rendezvous}, {.join_seconds = 10}).ok());
  });
  EXPECT_TRUE(ControlChannel::Join({0, 2, rendezvous}, {.join_seconds = 10}).ok());
  stranger.join();
  second.join();
}

// A rank whose process dies says no goodbye. Here: a socket that closes after hello.
TEST(ControlChannel, AClosedConnectionIsALostRank) {
  const std::string rendezvous = NewRendezvous();
  std::thread second([&] {
    auto socket = Socket::Connect(rendezvous, 10);
    ASSERT_TRUE(socket.ok());
    proto::ControlMessage message;
    message.mutable_hello()->set_version("0.1.0");
    message.mutable_hello()->set_world(2);
    message.mutable_hello()->set_rank(1);
    message.mutable_hello()->set_machine("m");
    message.mutable_hello()->set_where("host m, process 7");
    const std::string body = message.SerializeAsString();
    const uint32_t header[2] = {0x31434c51, uint32_t(body.size())};
    std::string frame(reinterpret_cast<const char*>(header), 8);
    EXPECT_TRUE(socket->Send(frame + body, 1).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  });
  const auto first = ControlChannel::Join({0, 2, rendezvous}, {.join_seconds = 10});
  ASSERT_TRUE(first.ok()) << first.status();
  const auto all = (*first)->AllGather("what never comes", "");
  second.join();
  EXPECT_EQ(proto::ExitCodeOf(all.status()), proto::kExitPeerLost);
  EXPECT_THAT(std::string(all.status().message()), HasSubstr("rank 1 (host m, process 7) is gone"));
}

}  // namespace
}  // namespace qlora::engine
