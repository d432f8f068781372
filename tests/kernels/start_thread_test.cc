#include "kernels/start_thread.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/support/no_threads.h"

namespace qlora::kernels {
namespace {

TEST(StartThread, Runs) {
  int done = 0;
  absl::StatusOr<std::thread> thread = StartThread("a thread", [&] { done = 1; });
  ASSERT_TRUE(thread.ok()) << thread.status();
  thread->join();
  EXPECT_EQ(done, 1);
}

TEST(StartThread, OneThatIsRefusedIsAnErrorByItsName) {
  const tests::NoThreads no_threads;
  const absl::Status refused = StartThread("the thread that saves", [] {}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              testing::StartsWith("the system refused the thread that saves: "));
  const absl::Status pool = cpu::ThreadPool::Create(3).status();
  EXPECT_EQ(pool.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(pool.message()), testing::HasSubstr("refused thread 2 of 3: "));
}

}  // namespace
}  // namespace qlora::kernels
