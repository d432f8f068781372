// Two runs that would write into one folder: the second is refused before it writes anything, and
// whatever ends the first one frees the folder.
#include <signal.h>
#include <sys/wait.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/folder_claim.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class SecondRun : public Workplace {
 protected:
  // What the held folder's runs are told.
  static constexpr char kInUse[] = "is in use by another run: process ";

  void Hold(const std::string& folder) {
    fs::create_directories(Path(folder));
    auto lock = engine::FileLock::Take(Path(folder + "/" + engine::kLockFile),
                                       absl::StrCat("process 7 on a machine of ", folder));
    ASSERT_TRUE(lock.ok()) << lock.status();
    locks_.push_back(*std::move(lock));
  }

  std::vector<std::unique_ptr<engine::FileLock>> locks_;
};

TEST_F(SecondRun, IsRefusedWhileTheFirstGoesOn) {
  job_ =
      "mode: QLORA training { max_steps: 8 gradient_accumulation_steps: 1 save_steps: 1 "
      "logging_steps: 1 } lora { r: 4 } num_threads: 1\n";
  ASSERT_EQ(Run("train").exit_code, 0);
  const std::string undisturbed = Read("out/adapter_model.safetensors");
  fs::remove_all(Path("out"));
  const CommandResult first = RunEngine(
      {"train", Path("job.textproto")},
      {.cues = {{"step 2/", [&](int pid) {
                   ::kill(pid, SIGSTOP);
                   // What it was just writing is on the disk before the files are looked at.
                   ::waitpid(pid, nullptr, WUNTRACED);
                   // It would otherwise throw away what the first one has.
                   ExpectCommandRefused("train", 64, {kInUse + absl::StrCat(pid), Path("out")},
                                        {"--set", "overwrite_output_dir=true", "--set", "seed=9"});
                   ::kill(pid, SIGCONT);
                 }}}});
  EXPECT_EQ(first.exit_code, 0) << first.err;
  EXPECT_TRUE(Read("out/adapter_model.safetensors") == undisturbed);
  EXPECT_FALSE(fs::exists(Path("out/.run.lock")));
}

TEST_F(SecondRun, MayFollowAKillAtOnce) {
  job_ =
      "mode: QLORA training { max_steps: 8 gradient_accumulation_steps: 1 save_steps: 1 "
      "logging_steps: 1 } num_threads: 1\n";
  WriteJob();
  const CommandResult killed =
      RunEngine({"train", Path("job.textproto")},
                {.cues = {{"step 3/", [](int pid) { ::kill(pid, SIGKILL); }}}});
  ASSERT_EQ(killed.signal, SIGKILL) << killed.err;
  ASSERT_TRUE(fs::exists(Path("out/.run.lock")));
  const CommandResult second = Run("train");
  EXPECT_EQ(second.exit_code, 0) << second.err;
  EXPECT_THAT(second.out, HasSubstr("going on from"));
  EXPECT_FALSE(fs::exists(Path("out/.run.lock")));
}

// Each command by the folder that it writes to.
TEST_F(SecondRun, IsRefusedByEveryCommandThatWrites) {
  ASSERT_EQ(Run("train").exit_code, 0);
  Hold("out");
  const std::string out = "process 7 on a machine of out";
  ExpectCommandRefused("train", 64, {kInUse, out});
  ExpectCommandRefused("merge", 64, {kInUse, out}, {"--set", "merge.output=" + Path("merged")});
  ExpectCommandRefused("sweep", 64, {kInUse, out}, {"--set", "sweep.ranks=2"});
  ExpectCommandRefused("quantize", 64, {kInUse, out});
  Hold("out/drift");
  ExpectCommandRefused("drift", 64, {out + "/drift"});
  // A sweep's adapters may be another run's folders.
  Hold("sweep/r2");
  ExpectCommandRefused("sweep", 64, {"machine of sweep/r2"},
                       {"--set", "output_dir=" + Path("sweep"), "--set", "sweep.ranks=2"});
}

TEST_F(SecondRun, OfSeveralProcessesIsRefusedAsAWhole) {
  Hold("out");
  WriteJob();
  const CommandResult result = RunEngine({"train", Path("job.textproto")}, {.ranks = 2});
  EXPECT_EQ(result.exit_code, 64) << result.err;
  EXPECT_THAT(result.err, HasSubstr(kInUse));
  EXPECT_THAT(result.err, HasSubstr("rank 1: error: "));
  EXPECT_EQ(Output().size(), 1u) << "the lock alone";
}

}  // namespace
}  // namespace qlora::tests
