#include "engine/checkpoint/folder_claim.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "tests/engine/io/temp_folder.h"

namespace qlora::engine {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class FolderClaimTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<FolderClaim>> Take(const std::string& name) {
    return FolderClaim::Take(env_, folder_.File(name), &console_);
  }

  Env* const env_ = Env::Default();
  const tests::TempFolder folder_;
  Console console_;
};

TEST_F(FolderClaimTest, IsOneRunsUntilItIsGivenBack) {
  auto first = Take("a/out");
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status second = Take("a/out").status();
  EXPECT_EQ(proto::ExitCodeOf(second), proto::kExitBadJob);
  EXPECT_THAT(std::string(second.message()),
              AllOf(HasSubstr(folder_.File("a/out")),
                    HasSubstr(absl::StrCat("in use by another run: process ", ::getpid(), " on ")),
                    HasSubstr("another output_dir")));
  EXPECT_TRUE(Take("a/b").ok());
  first->reset();
  EXPECT_TRUE(Take("a/out").ok());
}

TEST_F(FolderClaimTest, LeavesNoFolderThatNothingWasPutInto) {
  EXPECT_TRUE(Take("a/b/out").ok());
  EXPECT_FALSE(env_->Exists(folder_.File("a")));
  {
    const auto claim = Take("a/b/out");
    ASSERT_TRUE(claim.ok());
    ASSERT_TRUE(env_->CreateFolder(folder_.File("a/b/out/checkpoint-1")).ok());
  }
  EXPECT_EQ(*env_->List(folder_.File("a/b/out")), std::vector<std::string>{"checkpoint-1"});
  ASSERT_TRUE(env_->CreateFolder(folder_.File("there")).ok());
  EXPECT_TRUE(Take("there").ok());
  EXPECT_TRUE(env_->IsFolder(folder_.File("there"))) << "it was not this one's";
}

TEST_F(FolderClaimTest, OfWhatCannotBeWrittenIsAnIoError) {
  ASSERT_TRUE(folder_.Write("file", "stays").ok());
  ASSERT_TRUE(env_->CreateFolders(folder_.File("taken/.run.lock")).ok());
  for (const std::string name : {"file", "file/below", "taken"}) {
    const absl::Status refused = Take(name).status();
    EXPECT_EQ(proto::ExitCodeOf(refused), proto::kExitIo) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("output_dir " + folder_.File(name)));
  }
  EXPECT_EQ(*env_->List(folder_.path()), (std::vector<std::string>{"file", "taken"}));
}

TEST_F(FolderClaimTest, WithoutLocksTheRunGoesOnWithAWarning) {
  testing::internal::CaptureStderr();
  const auto claim = FolderClaim::Take(env_, folder_.File("out"), &console_, [](int, int) {
    errno = ENOLCK;
    return -1;
  });
  EXPECT_THAT(
      testing::internal::GetCapturedStderr(),
      HasSubstr(absl::StrCat("warning: output_dir ", folder_.File("out"), " can't be locked (")));
  EXPECT_TRUE(claim.ok());
}

TEST_F(FolderClaimTest, BesideAFolderOutlivesItsReplacement) {
  ASSERT_TRUE(env_->CreateFolders(folder_.File("models/merged")).ok());
  const auto take = [&](const std::string& name) {
    return FolderClaim::TakeBeside(env_, folder_.File(name), "merge.output", &console_);
  };
  auto first = take("models/merged");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE((*first)->is_locked());
  ASSERT_TRUE(env_->RemoveAll(folder_.File("models/merged")).ok());
  const absl::Status second = take("models/merged/").status();
  EXPECT_EQ(proto::ExitCodeOf(second), proto::kExitBadJob);
  EXPECT_THAT(std::string(second.message()),
              AllOf(HasSubstr("merge.output " + folder_.File("models/merged")),
                    HasSubstr("another merge.output")));
  EXPECT_TRUE(take("models/merged-2").ok());
  EXPECT_TRUE(take("new/merged").ok());
  EXPECT_FALSE(env_->Exists(folder_.File("new")));
  first->reset();
  EXPECT_EQ(env_->List(folder_.File("models"))->size(), 0u);
}

}  // namespace
}  // namespace qlora::engine
