#include "engine/io/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/io/temp_folder.h"

namespace qlora::engine {
namespace {

using tests::TempFolder;

TEST(FileLock, IsOneHoldersUntilItIsGivenBack) {
  const TempFolder folder;
  const std::string path = folder.File("lock");
  auto lock = FileLock::Take(path, "the first");
  ASSERT_TRUE(lock.ok()) << lock.status();
  EXPECT_EQ(FileLock::Take(path, "the second").status(), absl::UnavailableError("the first"));
  lock->reset();
  EXPECT_FALSE(Env::Default()->Exists(path));
  EXPECT_TRUE(FileLock::Take(path, "the second").ok());
}

TEST(FileLock, EndsWithItsProcess) {
  const TempFolder folder;
  const std::string path = folder.File("lock");
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto lock = FileLock::Take(path, "a child");
    const char byte = lock.ok() ? 'x' : '-';
    if (::write(ends[1], &byte, 1) == 1) ::pause();
    ::_exit(1);
  }
  char byte = 0;
  ASSERT_EQ(::read(ends[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'x');
  EXPECT_EQ(FileLock::Take(path, "its parent").status(), absl::UnavailableError("a child"));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_TRUE(Env::Default()->Exists(path));
  EXPECT_TRUE(FileLock::Take(path, "its parent").ok());
  for (const int end : ends) ::close(end);
}

// Between its opening and its locking, the one who had it removes it.
TEST(FileLock, OnAFileWithoutANameIsNone) {
  const TempFolder folder;
  const std::string path = folder.File("lock");
  int times = 0;
  const auto lock = FileLock::Take(path, "the first", [&](int fd, int operation) {
    if (++times == 1) ::unlink(path.c_str());
    return ::flock(fd, operation);
  });
  ASSERT_TRUE(lock.ok()) << lock.status();
  EXPECT_EQ(times, 2);
  EXPECT_EQ(FileLock::Take(path, "the second").status(), absl::UnavailableError("the first"));
}

TEST(FileLock, WhereThereAreNoneSaysSo) {
  const TempFolder folder;
  const auto status = FileLock::Take(folder.File("lock"), "nobody", [](int, int) {
                        errno = ENOLCK;
                        return -1;
                      }).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(folder.File("lock")));
  EXPECT_FALSE(Env::Default()->Exists(folder.File("lock")));
}

TEST(FileLock, IsOfAFileOfItsOwn) {
  const TempFolder folder;
  ASSERT_TRUE(folder.Write("theirs", "stays").ok());
  ASSERT_EQ(::symlink("theirs", folder.File("link").c_str()), 0);
  ASSERT_EQ(::mkfifo(folder.File("fifo").c_str(), 0600), 0);
  for (const char* name : {"link", "fifo", "none/lock"}) {
    EXPECT_FALSE(FileLock::Take(folder.File(name), "me").ok()) << name;
  }
  EXPECT_EQ(*Env::Default()->ReadFile(folder.File("theirs"), 10), "stays");
  EXPECT_TRUE(Env::Default()->Exists(folder.File("fifo")));
}

}  // namespace
}  // namespace qlora::engine
