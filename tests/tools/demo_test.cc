// The demo's data and base: the generator's bytes, and that its training set and held-out set are
// apart.

#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/io/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/io/temp_folder.h"
#include "tests/support/command_line.h"
#include "tests/support/paths.h"

namespace qlora::tests {
namespace {

std::string Generated(const std::string& words) {
  FILE* pipe = ::popen(absl::StrCat(DemoDataBinary(), " ", words).c_str(), "r");
  std::string text;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) text.append(buffer, n);
  EXPECT_EQ(::pclose(pipe), 0) << words;
  return text;
}

// The base that is committed was trained on these bytes.
TEST(DemoData, CorpusIsTheOneTheBaseWasMadeFrom) {
  EXPECT_EQ(engine::Sha256Hex(Generated("corpus 20000 1")),
            "d90ce2120965bc7b55234bd2f265452931616a045d6da333f380153892f11d4e");
}

TEST(DemoData, HeldOutMessagesAreNotTrainedOnAndMeetNewNames) {
  std::set<std::string> trained, cities;
  const auto records = [](const std::string& text) {
    std::vector<nlohmann::json> all;
    for (const auto line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      all.push_back(nlohmann::json::parse(std::string(line)));
    }
    return all;
  };
  const auto city_of = [](const nlohmann::json& record) {
    const std::vector<std::string> fields =
        absl::StrSplit(record["completion"].get<std::string>(), '|');
    EXPECT_EQ(fields.size(), 6u) << record;
    return fields[2];
  };
  for (const auto& record : records(Generated("orders 8000 1"))) {
    trained.insert(record["prompt"]);
    cities.insert(city_of(record));
  }
  int64_t known = 0, in_new_city = 0;
  const auto test = records(Generated("orders 200 2"));
  ASSERT_EQ(test.size(), 200u);
  for (const auto& record : test) {
    known += trained.contains(record["prompt"]);
    in_new_city += !cities.contains(city_of(record));
  }
  EXPECT_EQ(known, 0);
  EXPECT_GT(in_new_city, 20);
}

TEST(DemoBase, LoadsAndFitsItsJob) {
  const TempFolder folder;
  ASSERT_TRUE(folder.Write("train.jsonl", Generated("orders 40 1")).ok());
  const std::string demo = SourceDir() + "/tools/demo";
  const CommandResult result =
      RunEngine({"plan", demo + "/job.textproto", "--set", "model=" + demo + "/base", "--set",
                 "data.train_file=" + folder.File("train.jsonl"), "--set",
                 "data.eval_file=", "--set", "eval.exact_match="});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, testing::HasSubstr("40 samples of 40 records"));
}

}  // namespace
}  // namespace qlora::tests
