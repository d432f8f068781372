#include "engine/data/jsonl.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"

namespace qlora::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::vector<std::string> Lines(absl::string_view file, int64_t max = 0) {
  auto lines = SplitJsonl(file, "f", max);
  EXPECT_TRUE(lines.ok()) << lines.status();
  std::vector<std::string> shown;
  for (const JsonlLine& line : *lines) shown.push_back(absl::StrCat(line.number, "=", line.text));
  return shown;
}

TEST(JsonlTest, LineEndsMarksAndBlankLines) {
  EXPECT_THAT(Lines(""), ElementsAre());
  EXPECT_THAT(Lines("\n \r\n\t\n"), ElementsAre());
  EXPECT_THAT(Lines("{}"), ElementsAre("1={}"));
  EXPECT_THAT(Lines("a\nb\n"), ElementsAre("1=a", "2=b"));
  EXPECT_THAT(Lines("a\r\nb\r\n\r\n\n"), ElementsAre("1=a", "2=b"));
  EXPECT_THAT(Lines("\xEF\xBB\xBF{}\n{}"), ElementsAre("1={}", "2={}"));
  EXPECT_THAT(Lines("a\n\n\nb"), ElementsAre("1=a", "4=b"));
  EXPECT_THAT(Lines("a\nb\nc", 2), ElementsAre("1=a", "2=b"));
}

std::string ErrorOf(absl::string_view text) {
  const auto json = ParseJsonlLine({7, text}, "data.jsonl");
  if (json.ok()) return "";
  EXPECT_EQ(proto::ExitCodeOf(json.status()), proto::kExitBadData);
  return std::string(json.status().message());
}

TEST(JsonlTest, BadLinesNameFileAndLine) {
  for (const char* bad :
       {"{", "{}}", "[1]", "3", "null", "\"a\"", "{'a':1}", "{\"a\":1,}", "{\"a\":\"\xff\"}",
        "{\"a\":\"\xED\xA0\x80\"}", "{\"a\":\"\xC0\xAF\"}", "{\"a\":\"\\ud800\"}",
        "{\"a\":1,\"a\":2}", "{\"a\":NaN}", "{\"a\":\"\t\"}"}) {
    EXPECT_THAT(ErrorOf(bad), StartsWith("data.jsonl:7: ")) << bad;
  }
  EXPECT_THAT(ErrorOf("{\"a\":\"\xff\"}"), HasSubstr("byte 6 of the line is 0xff"));
  EXPECT_THAT(ErrorOf("[1]"), HasSubstr("found array"));
  EXPECT_EQ(ErrorOf("{\"a\":\"\\u0000 \xF0\x9F\x98\x80\"}"), "");
  EXPECT_NE(ErrorOf(std::string(100'000, '[')), "");
  EXPECT_THAT(ErrorOf("{\"a\":" + std::string(100'000, '[')), HasSubstr("deep"));
}

TEST(JsonlTest, Utf16IsNamed) {
  const auto lines = SplitJsonl(absl::string_view("\xFF\xFE{\0}\0", 6), "f", 0);
  EXPECT_THAT(std::string(lines.status().message()), HasSubstr("UTF-16"));
}

}  // namespace
}  // namespace qlora::engine
