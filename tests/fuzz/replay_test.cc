// What the fuzzer found worth keeping, and the seeds it began with, through every target again.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "tests/fuzz/fuzz_target.h"
#include "tests/support/paths.h"

namespace qlora::tests {
namespace {

namespace fs = std::filesystem;

const fs::path kCorpus = fs::path(TestsDir()) / "fuzz/corpus";

class Replay : public testing::TestWithParam<FuzzTarget> {};

TEST_P(Replay, OfItsCorpus) {
  int inputs = 0;
  for (const auto& entry : fs::directory_iterator(kCorpus / GetParam().name)) {
    SCOPED_TRACE(entry.path());
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string input(std::istreambuf_iterator<char>(file), {});
    GetParam().run(input);
    ++inputs;
  }
  EXPECT_GE(inputs, 3);
  GetParam().run("");
}

INSTANTIATE_TEST_SUITE_P(Targets, Replay, testing::ValuesIn(FuzzTargets()),
                         [](const auto& info) { return info.param.name; });

TEST(ReplayCorpus, EveryFolderHasATarget) {
  std::set<std::string> folders, targets;
  for (const auto& entry : fs::directory_iterator(kCorpus)) folders.insert(entry.path().filename());
  for (const FuzzTarget& target : FuzzTargets()) targets.insert(target.name);
  EXPECT_EQ(folders, targets);
}

}  // namespace
}  // namespace qlora::tests
