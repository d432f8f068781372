// A process that saves checkpoint after checkpoint to a real disk is killed at random moments, the
// one that cleans up behind it too: what was acknowledged is there, whole.
//
// This proves order and naming. That syncs are where they must be, which a kill can't tell, is
// proven by tests/engine/io/commit_faults_test.cc.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/io/atomic_file.h"
#include "engine/io/atomic_folder.h"
#include "gtest/gtest.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/support/fault_scale.h"

namespace qlora::engine {
namespace {

constexpr std::chrono::microseconds kShortestLife{4000}, kLongestLife{50000};

std::string Payload(int64_t step) {
  std::string bytes(20'000, static_cast<char>('a' + step % 26));
  bytes.replace(0, 8, absl::StrCat(10'000'000 + step));
  return bytes;
}

absl::Status SaveStep(Env* env, const std::string& folder, int64_t step) {
  auto commit = FolderCommit::Begin(env, folder, CheckpointName(step));
  if (!commit.ok()) return commit.status();
  for (const char* name : {"adapter", "optimizer", "state"}) {
    if (absl::Status s = (*commit)->AddFile(name, Payload(step)); !s.ok()) return s;
  }
  if (absl::Status s = (*commit)->Commit({step, 1, "job"}); !s.ok()) return s;
  return RemoveOldest(env, folder, step, /*keep_last=*/2, "").status();
}

// Saves one step after the other and acknowledges each with a byte, until it is killed. Every
// fourth step is done twice, as after a resume.
[[noreturn]] void Drive(const std::string& folder, int64_t step, int acknowledge) {
  Env* const env = Env::Default();
  if (!CleanTemporaries(env, folder).ok()) _exit(1);
  while (true) {
    if (!SaveStep(env, folder, step).ok()) _exit(2);
    if (step % 4 == 0 && !SaveStep(env, folder, step).ok()) _exit(3);
    if (write(acknowledge, "x", 1) != 1) _exit(4);
    ++step;
  }
}

// Lets the driver live for a while; returns how many steps it acknowledged.
int64_t RunAndKill(const std::string& folder, int64_t step, std::chrono::microseconds life) {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const pid_t pid = fork();
  if (pid == 0) Drive(folder, step, ends[1]);
  close(ends[1]);
  std::this_thread::sleep_for(life);
  kill(pid, SIGKILL);
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status)) << "the driver failed: " << WEXITSTATUS(status);
  int64_t acknowledged = 0;
  char byte;
  while (read(ends[0], &byte, 1) == 1) ++acknowledged;
  close(ends[0]);
  return acknowledged;
}

TEST(StoreTorture, NothingAcknowledgedIsLost) {
  const int kills = tests::Times(300, 5000);
  std::mt19937_64 random(tests::FaultSeed());
  const tests::TempFolder folder;
  Env* const env = Env::Default();
  // Long enough for a save or two, however slow the disk and busy the machine.
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_TRUE(SaveStep(env, folder.path(), 1).ok());
  const auto longest = std::max<std::chrono::microseconds>(
      kLongestLife, std::chrono::duration_cast<std::chrono::microseconds>(
                        3 * (std::chrono::steady_clock::now() - begin)));
  int64_t last = 1;  // acknowledged
  for (int i = 0; i < kills; ++i) {
    // One in four is hit again while it cleans up.
    std::uniform_int_distribution<int64_t> life(i % 4 == 3 ? 0 : kShortestLife.count(),
                                                i % 4 == 3 ? 2000 : longest.count());
    last += RunAndKill(folder.path(), last + 1, std::chrono::microseconds(life(random)));

    const auto names = env->List(folder.path());
    ASSERT_TRUE(names.ok()) << names.status();
    for (const std::string& name : *names) {
      if (absl::StartsWith(name, kTemporaryPrefix)) continue;
      const absl::Status whole = VerifyFolder(env, folder.File(name)).status();
      ASSERT_TRUE(whole.ok()) << "kill " << i << ": " << whole;
    }
    const auto newest = FindNewestValid(env, folder.path());
    ASSERT_TRUE(newest.ok()) << newest.status();
    const int64_t step = newest->path.has_value() ? newest->manifest.step() : 0;
    ASSERT_TRUE(step == last || step == last + 1)
        << "kill " << i << ": newest is step " << step << ", acknowledged was " << last;
    if (step == 0) continue;
    for (const char* file : {"adapter", "optimizer", "state"}) {
      ASSERT_EQ(*env->ReadFile(JoinPath(*newest->path, file), 1 << 20), Payload(step));
    }
    last = std::max(last, step);  // whole, though nobody was told
  }
  EXPECT_GT(last, kills / 20) << "it never lived long enough to save";
}

}  // namespace
}  // namespace qlora::engine
