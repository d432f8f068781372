#include "engine/text/utf8.h"

#include <gtest/gtest.h>

#include "engine/text/byte_level.h"

namespace qlora::engine {
namespace {

TEST(Utf8Test, RoundTripOfEveryCodePoint) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text = "a";
    AppendUtf8(c, text);
    ASSERT_EQ(Utf8ErrorOffset(text), text.size()) << static_cast<uint32_t>(c);
    ASSERT_EQ(Utf8At(text, 1).value, c);
    ASSERT_EQ(Utf8At(text, 1).size, text.size() - 1);
    ASSERT_EQ(Utf8StartBefore(text, text.size()), 1u);
    // Cut short it is not UTF-8.
    const absl::string_view cut = absl::string_view(text).substr(0, text.size() - 1);
    ASSERT_EQ(Utf8ErrorOffset(cut), 1u);
  }
}

TEST(Utf8Test, MalformedSequencesAndTheirReplacement) {
  // Unicode 16, 3.9, tables 3-8 to 3-11.
  const struct {
    std::string bytes;
    size_t offset;
    std::string lossy;
  } cases[] = {
      {"\x80", 0, "\uFFFD"},
      {"a\xC0\xAF", 1, "a\uFFFD\uFFFD"},
      {"12345678\xFF", 8, "12345678\uFFFD"},
      {"\xED\xA0\x80", 0, "\uFFFD\uFFFD\uFFFD"},            // a surrogate
      {"\xF4\x90\x80\x80", 0, "\uFFFD\uFFFD\uFFFD\uFFFD"},  // above U+10FFFF
      {"\xE0\x80\xAF", 0, "\uFFFD\uFFFD\uFFFD"},            // overlong
      {"\xF0\x8F\x80\x80", 0, "\uFFFD\uFFFD\uFFFD\uFFFD"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", 0, "\uFFFD\uFFFD\uFFFD\uFFFD\x41"},
      {"é\xC3", 2, "é\uFFFD"},
      {"", 0, ""},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Utf8ErrorOffset(c.bytes), c.offset) << testing::PrintToString(c.bytes);
    std::string lossy;
    AppendLossyUtf8(c.bytes, lossy);
    EXPECT_EQ(lossy, c.lossy) << testing::PrintToString(c.bytes);
  }
}

TEST(ByteLevelTest, EveryByteHasItsLetter) {
  EXPECT_EQ(ToByteLevel(" the\n"), "ĠtheĊ");
  EXPECT_EQ(ToByteLevel("é"), "Ã©");
  EXPECT_EQ(ByteLevelChar(0), 0x100u);
  EXPECT_EQ(ByteLevelChar(0xAD), 0x143u);  // the last of the 68
  std::string all;
  for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
  EXPECT_EQ(FromByteLevel(ToByteLevel(all)), all);
  EXPECT_EQ(FromByteLevel("a b"), std::nullopt);
  EXPECT_EQ(FromByteLevel("\u0144"), std::nullopt);
  EXPECT_EQ(FromByteLevel("中"), std::nullopt);
}

}  // namespace
}  // namespace qlora::engine
