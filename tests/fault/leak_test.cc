// A long run takes no more memory, files or threads than a short one.
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;

struct Holding {
  int64_t resident_kib = 0;
  int64_t files = 0, threads = 0;
};

Holding HoldingOf(int pid) {
  const fs::path process = absl::StrCat("/proc/", pid);
  Holding holding;
  std::ifstream status(process / "status");
  for (std::string word; status >> word;) {
    if (word == "VmRSS:") status >> holding.resident_kib;
    if (word == "Threads:") status >> holding.threads;
  }
  for (const auto& entry : fs::directory_iterator(process / "fd")) {
    // Not what a checkpoint or log is just written to.
    std::error_code error;
    const std::string target = fs::read_symlink(entry.path(), error);
    holding.files += !error && target.find("/out/") == std::string::npos;
  }
  return holding;
}

class Leak : public Workplace {};

TEST_F(Leak, NothingGrowsWithTheSteps) {
  if (kSanitized) GTEST_SKIP() << "sanitizers keep what was freed";
  constexpr int kSteps = 10'000, kWarm = 1000;
  job_ = absl::StrCat("mode: QLORA training { max_steps: ", kSteps,
                      " gradient_accumulation_steps: 1 logging_steps: 100 save_steps: 250 } "
                      "lora { r: 4 } num_threads: 2\n");
  WriteJob();
  Holding early, late;
  const CommandResult result = RunEngine(
      {"train", Path("job.textproto")},
      {.cues = {
           {absl::StrCat("step ", kWarm, "/"), [&](int pid) { early = HoldingOf(pid); }},
           {absl::StrCat("step ", kSteps - 100, "/"), [&](int pid) { late = HoldingOf(pid); }}}});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  ASSERT_GT(early.resident_kib, 0);
  EXPECT_LE(late.resident_kib - early.resident_kib, 1024);
  EXPECT_EQ(late.files, early.files);
  // The one that commits a checkpoint comes and goes.
  EXPECT_LE(std::abs(late.threads - early.threads), 1);
}

}  // namespace
}  // namespace qlora::tests
