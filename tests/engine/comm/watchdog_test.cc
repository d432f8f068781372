#include "engine/comm/watchdog.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;

constexpr double kSilence = 10;

class WatchdogTest : public testing::Test {
 protected:
  // All three ranks say this at `now`.
  void AllSay(const Heartbeat& beat, double now) {
    for (int rank = 0; rank < 3; ++rank) watchdog_.Heard(rank, beat, now);
  }
  Watchdog watchdog_{3, kSilence, 0};
};

TEST_F(WatchdogTest, IsContentWhileAllAreHeard) {
  for (double now = 0; now < 100; now += kSilence) {
    AllSay({.phase = Phase::kComputing, .progress = int64_t(now)}, now);
    EXPECT_FALSE(watchdog_.Check(now + kSilence));
  }
}

TEST_F(WatchdogTest, NamesTheSilentRankAndWhatItWasDoing) {
  AllSay({.phase = Phase::kComputing, .progress = 1, .detail = "step 3"}, 1);
  watchdog_.Heard(0, {.phase = Phase::kComputing, .progress = 2}, 9);
  watchdog_.Heard(2, {.phase = Phase::kComputing, .progress = 2}, 9);
  EXPECT_FALSE(watchdog_.Check(11));
  const auto verdict = watchdog_.Check(11.5);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->rank, 1);
  EXPECT_THAT(verdict->reason, HasSubstr("rank 1 was silent for 10 s"));
  EXPECT_THAT(verdict->reason, HasSubstr("computing (step 3)"));
}

TEST_F(WatchdogTest, ARankThatNeverSpeaksIsSilentToo) {
  watchdog_.Heard(0, {}, 9);
  watchdog_.Heard(1, {}, 9);
  ASSERT_TRUE(watchdog_.Check(10.5));
  EXPECT_EQ(watchdog_.Check(10.5)->rank, 2);
}

TEST_F(WatchdogTest, APhaseHasALimitOfItsOwn) {
  const double limit = LimitOf(Phase::kSaving);
  double now = 0;
  for (; now < limit; now += kSilence) {
    watchdog_.Heard(0, {.phase = Phase::kComputing, .progress = int64_t(now)}, now);
    watchdog_.Heard(1, {.phase = Phase::kSaving, .progress = 1, .detail = "checkpoint-5"}, now);
    watchdog_.Heard(2, {.phase = Phase::kComputing, .progress = int64_t(now)}, now);
    ASSERT_FALSE(watchdog_.Check(now)) << now;
  }
  for (const int rank : {0, 2}) {
    watchdog_.Heard(rank, {.phase = Phase::kComputing, .progress = int64_t(now)}, now);
  }
  watchdog_.Heard(1, {.phase = Phase::kSaving, .progress = 1, .detail = "checkpoint-5"}, now);
  const auto verdict = watchdog_.Check(now + 1);
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->rank, 1);
  EXPECT_THAT(verdict->reason, HasSubstr("no progress"));
  EXPECT_THAT(verdict->reason, HasSubstr("saving (checkpoint-5)"));
}

TEST_F(WatchdogTest, WaitingForARankThatHasNotArrivedIsNoFault) {
  for (double now = 0; now < 500; now += kSilence / 2) {
    AllSay({.phase = Phase::kCollective, .progress = 1, .collective = 7}, now);
    watchdog_.Heard(1, {.phase = Phase::kComputing, .progress = 1, .collective = 6}, now);
    ASSERT_FALSE(watchdog_.Check(now)) << now;
  }
}

TEST_F(WatchdogTest, ACollectiveThatAllAreInMustEnd) {
  std::optional<Watchdog::Verdict> verdict;
  double now = 0;
  for (; now < 500 && !verdict; now += kSilence / 2) {
    AllSay({.phase = Phase::kCollective, .progress = 1, .collective = 7, .detail = "gradients"},
           now);
    verdict = watchdog_.Check(now);
  }
  ASSERT_TRUE(verdict);
  EXPECT_LE(now, 3 * kSilence);
  EXPECT_EQ(verdict->rank, -1);
  EXPECT_THAT(verdict->reason, HasSubstr("collective 7 (gradients)"));
}

TEST_F(WatchdogTest, WhoHoldsUpTheOthersInAnEarlierCollectiveIsNamed) {
  std::optional<Watchdog::Verdict> verdict;
  double now = 0;
  for (; now < 500 && !verdict; now += kSilence / 2) {
    AllSay({.phase = Phase::kCollective, .progress = 1, .collective = 8, .detail = "the next"},
           now);
    watchdog_.Heard(
        1, {.phase = Phase::kCollective, .progress = 1, .collective = 7, .detail = "gradients"},
        now);
    verdict = watchdog_.Check(now);
  }
  ASSERT_TRUE(verdict);
  EXPECT_LE(now, 3 * kSilence);
  EXPECT_EQ(verdict->rank, 1);
  EXPECT_THAT(verdict->reason, HasSubstr("rank 1 does not get past collective 7 (gradients)"));
}

TEST_F(WatchdogTest, WhoWatchesOneRankDoesNotKnowForWhomItWaits) {
  Watchdog watchdog(1, kSilence, 0);
  for (double now = 0; now < 500; now += kSilence / 2) {
    watchdog.Heard(0, {.phase = Phase::kCollective, .progress = 1, .collective = 7}, now);
    ASSERT_FALSE(watchdog.Check(now)) << now;
  }
}

TEST_F(WatchdogTest, ProgressInsideACollectiveCounts) {
  for (double now = 0; now < 500; now += kSilence / 2) {
    AllSay({.phase = Phase::kCollective, .progress = int64_t(now), .collective = 7}, now);
    ASSERT_FALSE(watchdog_.Check(now)) << now;
  }
}

// A job that was suspended for longer than a rank may be silent, or compute.
TEST_F(WatchdogTest, CountsFromWhereItGoesOn) {
  AllSay({.phase = Phase::kComputing, .progress = 1}, 1);
  const double resumed = 2 * LimitOf(Phase::kComputing);
  watchdog_.Restart(resumed);
  EXPECT_FALSE(watchdog_.Check(resumed + kSilence));
  watchdog_.Heard(0, {.phase = Phase::kComputing, .progress = 2}, resumed + 1);
  watchdog_.Heard(2, {.phase = Phase::kComputing, .progress = 1}, resumed + 1);
  const auto verdict = watchdog_.Check(resumed + kSilence + 0.5);
  ASSERT_TRUE(verdict);
  EXPECT_THAT(verdict->reason, HasSubstr("rank 1 was silent for 10 s"));
}

TEST_F(WatchdogTest, WhoHasFinishedMayBeSilent) {
  AllSay({.phase = Phase::kFinished}, 0);
  EXPECT_FALSE(watchdog_.Check(1e6));
}

}  // namespace
}  // namespace qlora::engine
