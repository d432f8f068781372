// The program on disks that fail or are full: it ends with an I/O error that names the path, keeps
// what was saved, leaves nothing half-written under a real name, and the same command then goes on
// to the bytes of a run that met no fault.
#include <errno.h>

#include <filesystem>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/io/atomic_folder.h"
#include "engine/io/manifest.h"
#include "proto/exit_codes.h"
#include "tests/support/fault_scale.h"
#include "tests/support/paths.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr int kHalfAWrite = -1;

class Disk : public Workplace {
 protected:
  Disk() {
    job_ =
        "mode: QLORA training { max_steps: 6 gradient_accumulation_steps: 1 save_steps: 2 "
        "logging_steps: 1 } lora { r: 4 } num_threads: 1\n";
  }
  CommandResult Train(const std::vector<std::string>& launcher) const {
    WriteJob();
    return RunEngine({"train", Path("job.textproto")}, {.launcher = launcher});
  }
  std::string Result() const { return Read("out/adapter_model.safetensors"); }

  // After a run that ended with `result` on a bad disk: what stands there now is whole, and a good
  // disk takes the run to the end.
  void ExpectNothingLost(const CommandResult& result, const std::string& undisturbed) const {
    EXPECT_EQ(result.signal, 0);
    if (result.exit_code != 0) {
      EXPECT_EQ(result.exit_code, proto::kExitIo) << result.err;
      EXPECT_THAT(result.err, HasSubstr("error: "));
      EXPECT_THAT(result.err, HasSubstr(Path("out")));
    }
    if (fs::exists(Path("out"))) {
      for (const auto& entry : fs::directory_iterator(Path("out"))) {
        if (!engine::CheckpointStep(entry.path().filename().string()).has_value()) continue;
        const auto whole = engine::VerifyFolder(engine::Env::Default(), entry.path());
        EXPECT_TRUE(whole.ok()) << whole.status();
      }
    }
    const CommandResult again = Train({});
    ASSERT_EQ(again.exit_code, 0) << again.err;
    EXPECT_TRUE(Result() == undisturbed);
    for (const auto& entry : fs::directory_iterator(Path("out"))) {
      EXPECT_FALSE(absl::StartsWith(entry.path().filename().string(), ".tmp")) << entry.path();
    }
  }
};

TEST_F(Disk, ThatFailsAtAnyCall) {
  if (kSanitized) GTEST_SKIP() << "sanitizers are preloaded themselves";
  const auto shim = [&](const std::vector<std::string>& settings) {
    std::vector<std::string> launcher = {"env", absl::StrCat("LD_PRELOAD=", IoShim()),
                                         absl::StrCat("QLORA_SHIM_FOLDER=", Path("out"))};
    launcher.insert(launcher.end(), settings.begin(), settings.end());
    return launcher;
  };
  ASSERT_EQ(Train(shim({absl::StrCat("QLORA_SHIM_COUNT=", Path("count"))})).exit_code, 0);
  const int calls = std::stoi(Read("count"));
  ASSERT_GT(calls, 100);
  const std::string undisturbed = Result();

  std::mt19937_64 random(FaultSeed());
  const int runs = Times(24, calls);
  for (int i = 0; i < runs; ++i) {
    fs::remove_all(Path("out"));
    const int at = 1 + int((int64_t(i) * calls + int64_t(random() % unsigned(calls))) / runs);
    constexpr int kErrors[] = {EIO, ENOSPC, EINTR, kHalfAWrite};
    const int error = kErrors[i % 4];
    const bool forever = error > 0 && error != EINTR && i / 4 % 2 == 1;
    SCOPED_TRACE(
        absl::StrCat("call ", at, " of ", calls, ", error ", error, forever ? " for ever" : ""));
    std::vector<std::string> settings = {absl::StrCat("QLORA_SHIM_FAIL_AT=", at),
                                         absl::StrCat("QLORA_SHIM_ERROR=", error)};
    if (forever) settings.push_back("QLORA_SHIM_FOREVER=1");
    const CommandResult result = Train(shim(settings));
    // What is no failure is not taken for one. (Names are not changed under EINTR.)
    if (error == kHalfAWrite) {
      EXPECT_EQ(result.exit_code, 0) << result.err;
    }
    ExpectNothingLost(result, undisturbed);
  }
}

TEST_F(Disk, ThatIsFull) {
  if (std::system("unshare -m true 2>/dev/null") != 0) GTEST_SKIP() << "mounting needs root";
  ASSERT_EQ(Train({}).exit_code, 0);
  const std::string undisturbed = Result();
  int failures = 0, forebodings = 0;
  for (int size = 40; size <= 400; size += 40) {
    SCOPED_TRACE(absl::StrCat(size, " KiB"));
    fs::remove_all(Path("out"));
    fs::create_directory(Path("out"));
    // What was written goes away with the file system: it is copied before.
    const CommandResult result =
        Train({"unshare", "-m", "sh", "-c",
               absl::StrCat("mount -t tmpfs -o size=", size, "k none ", Path("out"),
                            " && \"$@\"; code=$?; cp -a ", Path("out"), " ", Path("kept"),
                            "; exit $code"),
               "sh"});
    fs::remove_all(Path("out"));
    fs::rename(Path("kept"), Path("out"));
    failures += result.exit_code != 0;
    const bool foretold = absl::StrContains(result.err, "free, and this run is going to take");
    if (result.exit_code != 0) {
      EXPECT_THAT(result.err, HasSubstr("No space left"));
      EXPECT_TRUE(foretold) << result.err;
    }
    forebodings += foretold;
    ExpectNothingLost(result, undisturbed);
  }
  EXPECT_GT(failures, 2);
  EXPECT_LT(forebodings, 10);
}

TEST_F(Disk, ThatTakesNoLargerFiles) {
  ASSERT_EQ(Train({}).exit_code, 0);
  const std::string undisturbed = Result();
  int failures = 0;
  for (int blocks = 4; blocks <= 148; blocks += 16) {  // of 512 bytes
    SCOPED_TRACE(absl::StrCat(blocks, " blocks"));
    fs::remove_all(Path("out"));
    const CommandResult result =
        Train({"sh", "-c", absl::StrCat("ulimit -f ", blocks, "; exec \"$@\""), "sh"});
    failures += result.exit_code != 0;
    if (result.exit_code != 0) {
      EXPECT_THAT(result.err, HasSubstr("File too large"));
    }
    ExpectNothingLost(result, undisturbed);
  }
  EXPECT_GT(failures, 2);
}

}  // namespace
}  // namespace qlora::tests
