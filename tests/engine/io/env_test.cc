#include "engine/io/env.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "engine/io/posix_env.h"
#include "tests/engine/io/temp_folder.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using tests::TempFolder;

std::string Read(const std::string& path) {
  auto contents = Env::Default()->ReadFile(path, 1 << 20);
  EXPECT_TRUE(contents.ok()) << contents.status();
  return contents.value_or("");
}

TEST(PosixEnvTest, WritesAppendsAndReads) {
  TempFolder folder;
  Env* env = Env::Default();
  const std::string path = folder.File("a");
  auto file = env->NewWritableFile(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Append(absl::string_view("one")).ok());
  ASSERT_TRUE((*file)->Sync().ok());
  ASSERT_TRUE((*file)->Close().ok());
  EXPECT_TRUE((*file)->Close().ok());
  EXPECT_FALSE((*file)->Append(absl::string_view("late")).ok());
  EXPECT_FALSE((*file)->Sync().ok());
  auto more = env->NewAppendableFile(path);
  ASSERT_TRUE((*more)->Append(absl::string_view("two")).ok());
  ASSERT_TRUE((*more)->Close().ok());
  EXPECT_EQ(Read(path), "onetwo");
  auto mapped = env->MapFile(path);
  ASSERT_TRUE(mapped.ok());
  EXPECT_EQ(std::string(mapped->bytes().begin(), mapped->bytes().end()), "onetwo");
  ASSERT_TRUE(env->NewWritableFile(path).ok());  // truncates
  EXPECT_EQ(Read(path), "");
  auto empty = env->MapFile(path);
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ(empty->size(), 0u);
}

TEST(PosixEnvTest, MappedBytesOutliveTheirFileAndCopies) {
  TempFolder folder;
  ASSERT_TRUE(folder.Write("a", "contents").ok());
  MappedFile copy;
  {
    auto mapped = Env::Default()->MapFile(folder.File("a"));
    ASSERT_TRUE(mapped.ok());
    copy = *mapped;
  }
  ASSERT_TRUE(Env::Default()->RemoveFile(folder.File("a")).ok());
  EXPECT_EQ(copy.data()[7], 's');
}

TEST(PosixEnvTest, RefusesAFileAboveTheBound) {
  TempFolder folder;
  ASSERT_TRUE(folder.Write("a", "12345").ok());
  EXPECT_TRUE(Env::Default()->ReadFile(folder.File("a"), 5).ok());
  const auto status = Env::Default()->ReadFile(folder.File("a"), 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("5 bytes"));
}

TEST(PosixEnvTest, RefusesWhatIsNoRegularFileWithoutWaiting) {
  TempFolder folder;
  Env* env = Env::Default();
  const std::string fifo = folder.File("fifo");
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  for (const std::string& path : {fifo, std::string("/dev/null"), folder.path()}) {
    EXPECT_EQ(env->ReadFile(path, 10).status().code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_EQ(env->MapFile(path).status().code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_EQ(env->NewReadableFile(path).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(env->NewWritableFile(path).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(env->NewAppendableFile(path).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_THAT(env->ReadFile(fifo, 10).status().message(), HasSubstr("FIFO"));
}

TEST(PosixEnvTest, FollowsSymlinksButNamesLoops) {
  TempFolder folder;
  Env* env = Env::Default();
  ASSERT_TRUE(folder.Write("target", "x").ok());
  ASSERT_EQ(::symlink("target", folder.File("link").c_str()), 0);
  ASSERT_EQ(::symlink("loop", folder.File("loop").c_str()), 0);
  EXPECT_EQ(Read(folder.File("link")), "x");
  EXPECT_EQ(env->Stat(folder.File("link"), false)->kind, FileStat::Kind::kSymlink);
  EXPECT_EQ(env->Stat(folder.File("link"), true)->kind, FileStat::Kind::kFile);
  const auto status = env->ReadFile(folder.File("loop"), 10).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(StatusErrno(status), ELOOP);
}

TEST(PosixEnvTest, RefusesANulInAPath) {
  const std::string path("a\0b", 3);
  EXPECT_EQ(Env::Default()->ReadFile(path, 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Env::Default()->Rename("a", path).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Env::Default()->ReadFile("", 1).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(PosixEnvTest, ErrorsNameThePathAndCarryErrno) {
  TempFolder folder;
  const auto missing = Env::Default()->ReadFile(folder.File("none"), 1).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.message(), HasSubstr(folder.File("none")));
  EXPECT_THAT(missing.message(), HasSubstr("No such file"));
  EXPECT_FALSE(IsIoError(missing));
  const auto exists = Env::Default()->CreateFolder(folder.path());
  EXPECT_EQ(exists.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(IsIoError(ErrnoStatus(ENOSPC, "write", "x")));
  EXPECT_TRUE(IsIoError(ErrnoStatus(EACCES, "write", "x")));
  EXPECT_FALSE(IsIoError(absl::DataLossError("damaged")));
}

TEST(PosixEnvTest, InterruptedAndShortCallsAreGoneOnWith) {
  TempFolder folder;
  PosixCalls calls;
  int interrupts = 0;
  calls.write = [&](int fd, const void* p, size_t n) -> ssize_t {
    if (++interrupts % 2 == 1) {
      errno = EINTR;
      return -1;
    }
    return ::write(fd, p, std::min<size_t>(n, 3));
  };
  calls.read = [&](int fd, void* p, size_t n) -> ssize_t {
    if (++interrupts % 2 == 1) {
      errno = EINTR;
      return -1;
    }
    return ::read(fd, p, std::min<size_t>(n, 2));
  };
  int syncs = 0;
  calls.fsync = [&](int fd) {
    if (++syncs == 1) {
      errno = EINTR;
      return -1;
    }
    return ::fsync(fd);
  };
  calls.close = [](int fd) {
    ::close(fd);
    errno = EINTR;
    return -1;
  };
  auto env = NewPosixEnv(calls);
  auto file = env->NewWritableFile(folder.File("a"));
  ASSERT_TRUE((*file)->Append(absl::string_view("0123456789")).ok());
  ASSERT_TRUE((*file)->Sync().ok());
  EXPECT_EQ(syncs, 2);
  ASSERT_TRUE(
      (*file)->Close().ok());  // EINTR from close: the descriptor is gone, nothing to repeat
  auto contents = env->ReadFile(folder.File("a"), 100);
  ASSERT_TRUE(contents.ok()) << contents.status();
  EXPECT_EQ(*contents, "0123456789");
}

TEST(PosixEnvTest, FailingCallsAreErrors) {
  TempFolder folder;
  PosixCalls calls;
  int error = ENOSPC;
  const auto fail = [&error](auto...) {
    errno = error;
    return -1;
  };
  calls.write = fail;
  calls.fsync = fail;
  auto env = NewPosixEnv(calls);
  auto file = env->NewWritableFile(folder.File("a"));
  ASSERT_TRUE(file.ok());
  const auto full = (*file)->Append(absl::string_view("x"));
  EXPECT_EQ(StatusErrno(full), ENOSPC);
  EXPECT_THAT(full.message(), HasSubstr(folder.File("a")));
  error = EIO;
  EXPECT_EQ(StatusErrno((*file)->Sync()), EIO);
  EXPECT_EQ(StatusErrno(env->SyncFolder(folder.path())), EIO);
  error = EINVAL;  // a file system that knows no sync of folders
  EXPECT_TRUE(env->SyncFolder(folder.path()).ok());
  PosixCalls close_fails;
  close_fails.close = [](int fd) {
    ::close(fd);
    errno = EDQUOT;
    return -1;
  };
  auto env2 = NewPosixEnv(close_fails);
  auto file2 = env2->NewWritableFile(folder.File("b"));
  EXPECT_EQ(StatusErrno((*file2)->Close()), EDQUOT);
}

TEST(PosixEnvTest, AWriteOfNothingDoesNotLoopForEver) {
  TempFolder folder;
  PosixCalls calls;
  calls.write = [](int, const void*, size_t) -> ssize_t { return 0; };
  auto env = NewPosixEnv(calls);
  auto file = env->NewWritableFile(folder.File("a"));
  EXPECT_FALSE((*file)->Append(absl::string_view("x")).ok());
}

TEST(PosixEnvTest, FoldersAreMadeListedAndRemoved) {
  TempFolder folder;
  Env* env = Env::Default();
  ASSERT_TRUE(env->CreateFolders(folder.File("x/y/z")).ok());
  ASSERT_TRUE(env->CreateFolders(folder.File("x/y/z")).ok());
  EXPECT_TRUE(env->IsFolder(folder.File("x/y/z")));
  ASSERT_TRUE(folder.Write("x/b", "1").ok());
  ASSERT_TRUE(folder.Write("x/a", "22").ok());
  EXPECT_THAT(*env->List(folder.File("x")), ElementsAre("a", "b", "y"));
  EXPECT_EQ(*env->FileSize(folder.File("x/a")), 2);
  EXPECT_FALSE(env->CreateFolders(folder.File("x/a/below")).ok());
  // A link out of the folder is removed, what it leads to stays.
  ASSERT_TRUE(folder.Write("outside", "stays").ok());
  ASSERT_EQ(::symlink("../outside", folder.File("x/link").c_str()), 0);
  ASSERT_TRUE(env->CreateFolder(folder.File("kept")).ok());
  ASSERT_EQ(::symlink("../kept", folder.File("x/folderlink").c_str()), 0);
  ASSERT_TRUE(env->RemoveAll(folder.File("x")).ok());
  ASSERT_TRUE(env->RemoveAll(folder.File("x")).ok());
  EXPECT_FALSE(env->Exists(folder.File("x")));
  EXPECT_TRUE(env->Exists(folder.File("outside")));
  EXPECT_TRUE(env->Exists(folder.File("kept")));
  EXPECT_GT(*env->FreeSpace(folder.path()), 0);
}

TEST(PosixEnvTest, ClocksAndIds) {
  Env* env = Env::Default();
  EXPECT_GT(env->NowSeconds(), 1.6e9);
  const double before = env->MonotonicSeconds();
  EXPECT_GE(env->MonotonicSeconds(), before);
  const std::string id = env->RandomId();
  EXPECT_EQ(id.size(), 16u);
  EXPECT_NE(id, env->RandomId());
  EXPECT_TRUE(IsPlainName(env->HostName()));
  EXPECT_EQ(env->ProcessId(), ::getpid());
}

TEST(PathTest, JoinsAndSplits) {
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
  EXPECT_EQ(JoinPath("", "b"), "b");
  EXPECT_EQ(ParentPath("a/b"), "a");
  EXPECT_EQ(ParentPath("a/b/"), "a");
  EXPECT_EQ(ParentPath("b"), ".");
  EXPECT_EQ(ParentPath("/b"), "/");
  EXPECT_EQ(ParentPath("/"), "/");
  EXPECT_EQ(BaseName("a/b"), "b");
  EXPECT_EQ(BaseName("a/b/"), "b");
  EXPECT_EQ(BaseName("b"), "b");
}

TEST(PathTest, PlainNamesStayInTheirFolder) {
  for (const char* good : {"a", "model-00001-of-00002.safetensors", "..a", "a..b", "\xc3\xa4"}) {
    EXPECT_TRUE(IsPlainName(good)) << good;
  }
  for (const std::string& bad : std::vector<std::string>{"", ".", "..", "a/b", "/a", "../a", "a\\b",
                                                         "a\n", "\x7f", std::string("a\0b", 3)}) {
    EXPECT_FALSE(IsPlainName(bad)) << bad;
  }
}

TEST(Env, PathsAreResolvedAsFarAsTheyExist) {
  Env* env = Env::Default();
  const tests::TempFolder folder;
  const std::string root = ResolvedPath(folder.path());
  ASSERT_TRUE(env->CreateFolders(folder.File("a/b")).ok());
  std::filesystem::create_directory_symlink(folder.File("a/b"), folder.File("link"));
  EXPECT_EQ(ResolvedPath(folder.File("link/new/../c/")), root + "/a/b/c");
  EXPECT_EQ(ResolvedPath(folder.File("link/..")), root + "/a") << "not what the text says";
  EXPECT_EQ(ResolvedPath("new"), ResolvedPath(".") + "/new");
  EXPECT_EQ(ResolvedPath("/"), "/");
}

TEST(Env, WhatLiesInAFolder) {
  EXPECT_TRUE(IsWithin("/a/b", "/a"));
  EXPECT_TRUE(IsWithin("/a", "/a"));
  EXPECT_TRUE(IsWithin("/a", "/"));
  EXPECT_FALSE(IsWithin("/ab", "/a"));
  EXPECT_FALSE(IsWithin("/a", "/a/b"));
}

}  // namespace
}  // namespace qlora::engine
