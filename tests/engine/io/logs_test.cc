#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "engine/io/event_file.h"
#include "engine/io/metrics_log.h"
#include "proto/tensorboard_event.pb.h"
#include "tests/support/faulty_env.h"
#include "tests/support/paths.h"

namespace qlora::engine {
namespace {

using tests::FaultyEnv;

std::string Contents(FaultyEnv* env, const std::string& path) {
  return env->ReadFile(path, 1 << 20).value_or("(none)");
}

TEST(EventFileTest, EqualsTensorBoardsOwnWriter) {
  FaultyEnv env;
  env.set_now(1.7e9);
  auto events = EventFile::Create(&env, ".", 5);
  ASSERT_TRUE(events.ok()) << events.status();
  EXPECT_EQ(events->path(), "./events.out.tfevents.1700000000.testhost.4242");
  env.set_now(1.7e9 + 2);
  ASSERT_TRUE(
      events->WriteScalars(6, {{"train/loss", 1.25f}, {"train/learning_rate", 2e-4f}}).ok());
  ASSERT_TRUE(events->Close().ok());
  auto golden = Env::Default()->ReadFile(tests::TestsDir() + "/golden/io/events.bin", 1 << 20);
  ASSERT_TRUE(golden.ok()) << golden.status();
  EXPECT_EQ(Contents(&env, events->path()), *golden);
}

// The field is one of a oneof: TensorBoard takes a value without it for a tag without a point.
TEST(EventFileTest, AZeroIsWritten) {
  FaultyEnv env;
  auto events = EventFile::Create(&env, ".", 0);
  ASSERT_TRUE(events.ok()) << events.status();
  ASSERT_TRUE(events->WriteScalars(1, {{"rate", 0.0f}}).ok());
  const std::string value("\x0a\x04rate\x15\0\0\0\0", 11);
  EXPECT_THAT(Contents(&env, events->path()), testing::HasSubstr(value));
}

TEST(EventFileTest, WhatWasSyncedSurvivesAPowerCut) {
  FaultyEnv env;
  auto events = EventFile::Create(&env, ".", 0);
  ASSERT_TRUE(events.ok()) << events.status();
  ASSERT_TRUE(events->WriteScalars(1, {{"rate", 0.5f}}).ok() && events->Sync().ok());
  const std::string synced = Contents(&env, events->path());
  ASSERT_TRUE(events->WriteScalars(2, {{"rate", 0.25f}}).ok());
  auto after = env.Restart(FaultyEnv::Loss::kAllUnsynced, 1);
  EXPECT_EQ(Contents(after.get(), events->path()), synced);
}

// What earlier files of the folder say is no part of a run that begins again.
TEST(EventFileTest, ANewRunStartsAtStep0) {
  FaultyEnv env;
  auto events = EventFile::Create(&env, ".", 0);
  ASSERT_TRUE(events.ok()) << events.status();
  const std::string log = Contents(&env, events->path());
  proto::TensorboardEvent start;
  // Behind the version's record: 8 + 4 + (9 + 2 + 14) + 4 bytes, and 12 before the message.
  ASSERT_GT(log.size(), 40u + 12 + 4);
  ASSERT_TRUE(start.ParseFromString(log.substr(40 + 12, log.size() - 40 - 12 - 4)));
  EXPECT_EQ(start.session_log().status(), proto::TensorboardSessionLog::START);
  EXPECT_EQ(start.step(), 0);
}

TEST(EventFileTest, NeverWritesOverAnotherRun) {
  FaultyEnv env;
  auto first = EventFile::Create(&env, ".", 0);
  auto second = EventFile::Create(&env, ".", 0);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->path(), second->path());
  EXPECT_EQ(Contents(&env, first->path()), Contents(&env, second->path()));
}

TEST(MetricLineTest, NumbersReadBackTheSame) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(MetricLine(3, {}), "{\"step\":3}\n");
  EXPECT_EQ(MetricLine(3, {{"loss", 0.1},
                           {"whole", 2.0},
                           {"small", 2e-4},
                           {"tokens", int64_t{7}},
                           {"nan", std::nan("")},
                           {"up", kInf},
                           {"down", -kInf},
                           {"text", std::string("a\"\n\xff")}}),
            "{\"step\":3,\"loss\":0.1,\"whole\":2.0,\"small\":2e-04,\"tokens\":7,\"nan\":\"NaN\","
            "\"up\":\"Infinity\",\"down\":\"-Infinity\",\"text\":\"a\\\"\\n\xef\xbf\xbd\"}\n");
}

TEST(MetricsLogTest, AResumedLogEqualsAnUninterruptedOne) {
  const auto write = [](MetricsLog* log, int64_t from, int64_t to) {
    for (int64_t step = from; step <= to; ++step) {
      ASSERT_TRUE(log->Write(step, {{"loss", 1.0 / static_cast<double>(step)}}).ok());
      if (step % 2 == 0) {
        ASSERT_TRUE(log->Write(step, {{"eval_loss", 2.0}}).ok());
      }
    }
  };
  FaultyEnv whole;
  auto log = MetricsLog::Open(&whole, "m.jsonl", 0);
  ASSERT_TRUE(log.ok()) << log.status();
  write(&*log, 1, 8);
  const std::string want = Contents(&whole, "m.jsonl");

  for (int64_t resumed = 1; resumed <= 6; ++resumed) {
    FaultyEnv env;
    auto first = MetricsLog::Open(&env, "m.jsonl", 0);
    write(&*first, 1, 6);
    auto raw = env.NewAppendableFile("m.jsonl");
    ASSERT_TRUE(
        (*raw)->Append(absl::string_view("{\"step\":7,\"lo")).ok());  // killed while writing
    auto second = MetricsLog::Open(&env, "m.jsonl", resumed);
    ASSERT_TRUE(second.ok());
    EXPECT_EQ(second->kept(), resumed + resumed / 2);
    EXPECT_EQ(second->cut(), 10 - second->kept());
    write(&*second, resumed + 1, 8);
    EXPECT_EQ(Contents(&env, "m.jsonl"), want) << resumed;
  }
}

TEST(MetricsLogTest, DamageEndsWhatIsKept) {
  for (const char* line : {"\n", "x\n", "[]\n", "{}\n", "{\"step\":\"1\"}\n", "{\"step\":-1}\n",
                           "{\"step\":1.5}\n", "{\"step\":9}\n"}) {
    FaultyEnv env;
    auto raw = env.NewWritableFile("m");
    ASSERT_TRUE((*raw)->Append(absl::StrCat("{\"step\":1}\n", line, "{\"step\":2}\n")).ok());
    auto log = MetricsLog::Open(&env, "m", 5);
    ASSERT_TRUE(log.ok());
    EXPECT_EQ(Contents(&env, "m"), "{\"step\":1}\n") << line;
    EXPECT_EQ(log->cut(), 2);
  }
}

// Of the same step: an evaluation that the state resumed from does not know of.
TEST(MetricsLogTest, LinesThatAreNotKnownOfAreCut) {
  FaultyEnv env;
  auto first = MetricsLog::Open(&env, "m", 0);
  ASSERT_TRUE(first->Write(1, {}).ok());
  ASSERT_TRUE(first->Write(1, {{"eval_loss", 2.0}}).ok());
  const auto log = MetricsLog::Open(&env, "m", 1, 1);
  ASSERT_TRUE(log.ok());
  EXPECT_EQ(Contents(&env, "m"), "{\"step\":1}\n");
  EXPECT_EQ(log->cut(), 1);
}

TEST(MetricsLogTest, AFreshRunReplacesAndStepsNeverFall) {
  FaultyEnv env;
  auto raw = env.NewWritableFile("m");
  ASSERT_TRUE((*raw)->Append(absl::string_view("{\"step\":1}\n")).ok());
  auto log = MetricsLog::Open(&env, "m", 0);
  ASSERT_TRUE(log.ok());
  EXPECT_EQ(Contents(&env, "m"), "");
  ASSERT_TRUE(log->Write(4, {}).ok());
  EXPECT_FALSE(log->Write(3, {}).ok());
  env.FailAt(env.operations(), ENOSPC, false);
  EXPECT_TRUE(IsIoError(log->Write(5, {})));
}

TEST(MetricsLogTest, SyncedLinesSurviveAPowerCut) {
  FaultyEnv env;
  auto log = MetricsLog::Open(&env, "m", 0);
  ASSERT_TRUE(log->Write(1, {}).ok());
  ASSERT_TRUE(log->Sync().ok());
  ASSERT_TRUE(log->Write(2, {}).ok());
  auto after = env.Restart(FaultyEnv::Loss::kAllUnsynced, 1);
  EXPECT_EQ(Contents(after.get(), "m"), "{\"step\":1}\n");
}

}  // namespace
}  // namespace qlora::engine
