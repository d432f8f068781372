#include "engine/text/regex_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace qlora::engine {
namespace {

using testing::HasSubstr;
using Words = std::vector<std::string>;

Words Matches(absl::string_view regex, const std::string& text) {
  const auto pattern = MakePcrePattern(regex);
  EXPECT_TRUE(pattern.ok()) << pattern.status();
  std::vector<TextRange> matches;
  EXPECT_TRUE((*pattern)->FindMatches(text, matches).ok());
  Words words;
  for (const TextRange& m : matches) words.push_back(text.substr(m.begin, m.end - m.begin));
  return words;
}

TEST(RegexPatternTest, WhiteSpaceIsUnicodesNotPcres) {
  // U+180E is no white space; U+0085, U+00A0 and U+3000 are.
  EXPECT_EQ(Matches(R"(\s+)", "a\u180Eb\u0085\u00A0\u3000c \n"),
            (Words{"\u0085\u00A0\u3000", " \n"}));
  EXPECT_EQ(Matches(R"(\S+)", "a\u180Eb\u0085c"), (Words{"a\u180Eb", "c"}));
  EXPECT_EQ(Matches(R"([^\s,]+)", "a\u180Eb c,d"), (Words{"a\u180Eb", "c", "d"}));
  EXPECT_EQ(Matches(R"([\S ]+)", "a b\nc"), (Words{"a b", "c"}));
}

TEST(RegexPatternTest, RubysMeaningOfAnchorsAndEmptyMatches) {
  EXPECT_EQ(Matches("^.", "ab\ncd"), (Words{"a", "c"}));
  EXPECT_EQ(Matches("x*", "axxb"), (Words{"", "xx", ""}));
  EXPECT_EQ(Matches("(?=[A-Z])", "éAbC").size(), 2u);
  EXPECT_EQ(Matches("", "é").size(), 2u);
}

TEST(RegexPatternTest, WhatDiffersIsRefusedByName) {
  const std::pair<const char*, const char*> refused[] = {
      {R"(\w+)", "\\w"},
      {R"(a\b)", "\\b"},
      {R"(\h)", "\\h"},
      {R"(\R)", "\\R"},
      {R"(\X)", "\\X"},
      {R"(\K)", "\\K"},
      {R"([[:alpha:]])", "class inside a class"},
      {R"([a-z&&b])", "&&"},
      {R"((?m:.))", "(?m:"},
      {R"((?<name>a))", "(?<n"},
      {R"((*FAIL))", "(*"},
      {R"(a{1,2}+)", "}+"},
      {R"(a{2}?)", "}?"},
      {R"(\pL)", "property"},
      {R"(\xE9)", "\\x"},
      {"a\\", "trailing"},
  };
  for (const auto& [regex, name] : refused) {
    const absl::Status status = MakePcrePattern(regex).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << regex;
    EXPECT_THAT(status.message(), HasSubstr(name)) << regex;
  }
  EXPECT_THAT(MakePcrePattern("(a").status().message(), HasSubstr("at byte 2"));
  EXPECT_FALSE(MakePcrePattern(std::string(20000, 'a')).ok());
}

TEST(RegexPatternTest, EscapesAndClassesPassThrough) {
  EXPECT_EQ(Matches(R"([!\]\\^-]+)", "a]\\^!-b"), (Words{"]\\^!-"}));
  EXPECT_EQ(Matches(R"([]x]+)", "]x"), (Words{"]x"}));
  EXPECT_EQ(Matches(R"((?i:'s))", "'S'\u017F"), (Words{"'S", "'\u017F"}));
  EXPECT_EQ(Matches(R"(\x{4e00}\p{Han}++)", "一二三"), (Words{"一二三"}));
}

TEST(RegexPatternTest, RunawayMatchingIsAnErrorNotAHang) {
  const auto pattern = MakePcrePattern(R"((?:a+)+(?:a+)+[bc]$)");
  ASSERT_TRUE(pattern.ok());
  std::vector<TextRange> matches;
  const absl::Status status = (*pattern)->FindMatches(std::string(200, 'a') + "d", matches);
  EXPECT_FALSE(status.ok());
}

}  // namespace
}  // namespace qlora::engine
