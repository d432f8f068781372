// The jobs and parts of jobs that README.md shows are jobs that every command takes.

#include <cctype>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "proto/job_check.h"
#include "tests/support/paths.h"

namespace qlora::proto {
namespace {

// Blocks of lines that are indented by four blanks.
std::vector<std::string> CodeBlocks() {
  std::ifstream file(tests::SourceDir() + "/README.md");
  std::vector<std::string> blocks;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (absl::StartsWith(line, "    ")) {
      if (!inside) blocks.emplace_back();
      absl::StrAppend(&blocks.back(), line.substr(4), "\n");
      inside = true;
    } else if (!line.empty()) {
      inside = false;
    }
  }
  return blocks;
}

// "sweep { ... }"
bool IsPartOfAJob(const std::string& block) {
  size_t name = 0;
  while (name < block.size() && std::islower(static_cast<unsigned char>(block[name]))) ++name;
  return name > 0 && absl::StartsWith(block.substr(name), " {");
}

TEST(ReadmeJobsTest, WholeOnesPassEveryCheck) {
  int found = 0;
  for (const std::string& block : CodeBlocks()) {
    if (!absl::StartsWith(block, "# job.textproto")) continue;
    ++found;
    for (const auto& [command, set] :
         {std::pair<Command, std::vector<std::string>>{Command::kTrain, {}},
          {Command::kPlan, {}},
          {Command::kInspect, {}},
          {Command::kEval, {"eval.adapter=runs/orders"}},
          {Command::kGenerate, {"generate.adapter=runs/orders", "generate.prompt=..."}},
          {Command::kDrift, {}},
          {Command::kQuantize, {}},
          {Command::kSweep, {"sweep.ranks=1,2"}},
          {Command::kMerge, {}}}) {
      const absl::Status status = LoadJob(block, "README.md", set, command).status();
      EXPECT_TRUE(status.ok()) << status;
    }
  }
  EXPECT_EQ(found, 1);
}

TEST(ReadmeJobsTest, PartsAreRead) {
  int found = 0;
  for (const std::string& block : CodeBlocks()) {
    if (!IsPartOfAJob(block)) continue;
    ++found;
    const absl::Status status = ParseJob(block, "README.md", {}).status();
    EXPECT_TRUE(status.ok()) << status << "\n" << block;
  }
  EXPECT_GE(found, 5);
}

}  // namespace
}  // namespace qlora::proto
