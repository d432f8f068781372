// What `verify` says of a disk that fails, beside files that are damaged.
#include "engine/commands/verify.h"

#include "engine/checkpoint/result_sums.h"
#include "engine/io/atomic_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "tests/support/faulty_env.h"

namespace qlora::engine {
namespace {

using testing::HasSubstr;
using testing::Not;

class VerifyTest : public testing::Test {
 protected:
  VerifyTest() {
    EXPECT_TRUE(env_.CreateFolder("out").ok());
    for (const char* name : {"out/a", "out/b"}) EXPECT_TRUE(AtomicWriteFile(&env_, name, "1").ok());
    EXPECT_TRUE(WriteResultSums(&env_, "out", {"a", "b"}).ok());
  }
  // Its status; `said_` is what it printed.
  absl::Status Run() {
    Console console(/*live=*/false);
    testing::internal::CaptureStdout();
    const absl::Status status = Verify(&env_, "out", &console);
    said_ = testing::internal::GetCapturedStdout();
    return status;
  }

  tests::FaultyEnv env_;
  std::string said_;
};

TEST_F(VerifyTest, AFailingDiskIsNoDamage) {
  const int64_t begin = env_.operations();
  ASSERT_TRUE(Run().ok());
  const int64_t operations = env_.operations() - begin;
  int unread = 0;
  for (int64_t i = 0; i < operations; ++i) {
    env_.FailAt(env_.operations() + i, EIO, /*forever=*/false);
    const absl::Status status = Run();
    env_.StopFailing();
    EXPECT_THAT(said_, Not(HasSubstr("damaged")));
    if (status.ok()) continue;  // asked for something that need not be there
    EXPECT_EQ(proto::ExitCodeOf(status), proto::kExitIo) << status;
    if (said_.find("unread   out/") != said_.npos) ++unread;
  }
  EXPECT_GT(unread, 1);
}

TEST_F(VerifyTest, WhatIsDamagedCountsMoreThanWhatIsUnread) {
  ASSERT_TRUE(AtomicWriteFile(&env_, "out/b", "2").ok());
  const int64_t begin = env_.operations();
  ASSERT_EQ(proto::ExitCodeOf(Run()), proto::kExitBadData);
  const int64_t operations = env_.operations() - begin;
  bool both = false;
  for (int64_t i = 0; i < operations; ++i) {
    env_.FailAt(env_.operations() + i, EIO, /*forever=*/false);
    const absl::Status status = Run();
    env_.StopFailing();
    if (said_.find("unread   out/a") == said_.npos) continue;
    both = true;
    EXPECT_THAT(said_, HasSubstr("damaged  out/b"));
    EXPECT_EQ(proto::ExitCodeOf(status), proto::kExitBadData) << status;
  }
  EXPECT_TRUE(both);
}

}  // namespace
}  // namespace qlora::engine
