// The hand-written matchers against the regular expressions that they stand for.
#include "engine/text/word_pattern.h"

#include <gtest/gtest.h>

#include <vector>

#include "engine/text/regex_pattern.h"
#include "engine/text/utf8.h"
#include "tests/engine/text/word_patterns.h"

namespace qlora::engine {
namespace {

std::vector<std::string> WordsOf(const SplitPattern& pattern, const std::string& text) {
  std::vector<TextRange> matches;
  EXPECT_TRUE(pattern.FindMatches(text, matches).ok());
  std::vector<std::string> words;
  for (const TextRange& m : matches) words.push_back(text.substr(m.begin, m.end - m.begin));
  return words;
}

TEST(WordPatternTest, OnlyTheExactPatternsAreKnown) {
  for (const char* const known : {kLlama3, kQwen2, kQwen35, kTekken, kO200k}) {
    EXPECT_NE(MakeWordPattern(known), nullptr) << known;
    EXPECT_EQ(MakeWordPattern(std::string(known) + "|x"), nullptr);
  }
  EXPECT_NE(MakeWordPattern(kGpt2Pattern), nullptr);
  EXPECT_EQ(MakeWordPattern(R"(\s+)"), nullptr);
}

TEST(WordPatternTest, Examples) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(WordsOf(*MakeWordPattern(kLlama3), "I'LL pay 12345!\r\n\n  now  "),
            (Words{"I", "'LL", " pay", " ", "123", "45", "!\r\n\n", " ", " now", "  "}));
  EXPECT_EQ(WordsOf(*MakeWordPattern(kQwen2), "x12"), (Words{"x", "1", "2"}));
  EXPECT_EQ(WordsOf(*MakeWordPattern(kGpt2Pattern), "I'LL I'll 12345 !\n\n x"),
            (Words{"I", "'", "LL", " I", "'ll", " 12345", " !", "\n\n", " x"}));
  EXPECT_EQ(WordsOf(*MakeWordPattern(kTekken), "XMLHttpRequest a/b\n/"),
            (Words{"XMLHttp", "Request", " a", "/b", "\n", "/"}));
  EXPECT_EQ(WordsOf(*MakeWordPattern(kO200k), "McDonald's USA'S"),
            (Words{"Mc", "Donald's", " USA'S"}));
  // Characters of Unicode 16, which PCRE2 does not know yet.
  EXPECT_EQ(WordsOf(*MakeWordPattern(kLlama3), "\u1C89\u1C8Ax\U00010D41\U00010D42"),
            (Words{"\u1C89\u1C8Ax", "\U00010D41\U00010D42"}));
}

TEST(WordPatternTest, EqualTheRegularExpressions) {
  // Characters of Unicode 14 or older, of every class that a pattern tells apart, the telling ones
  // often.
  const std::u32string pool =
      U"''''  \n\r\t/ssSStTmMdDrReEvVlLlLaAbB1290!?.-_\u00A0\u0085\u180E\u2003\u2028\u3000\u200B"
      U"\u017F\u212AéÄßǅǅʰʰªªЖж中中カ한\u0301\u0301\u0323\u093F\u0E34\u20DD٣५Ⅷ½²😀€▁\u0001\uE000";
  uint64_t state = 99;
  const auto draw = [&](uint64_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % n;
  };
  for (const absl::string_view regex :
       {kGpt2Pattern, absl::string_view(kLlama3), absl::string_view(kQwen2),
        absl::string_view(kQwen35), absl::string_view(kTekken), absl::string_view(kO200k)}) {
    const auto fast = MakeWordPattern(regex);
    const auto slow = MakePcrePattern(regex);
    ASSERT_TRUE(slow.ok()) << slow.status();
    for (int i = 0; i < 20000; ++i) {
      std::string text;
      for (uint64_t n = draw(16) + 1; n > 0; --n) AppendUtf8(pool[draw(pool.size())], text);
      ASSERT_EQ(WordsOf(*fast, text), WordsOf(**slow, text))
          << regex << " on " << testing::PrintToString(text);
    }
  }
}

}  // namespace
}  // namespace qlora::engine
