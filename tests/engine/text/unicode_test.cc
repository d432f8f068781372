#include "engine/text/unicode.h"

#include <gtest/gtest.h>

namespace qlora::engine {
namespace {

// All 1,114,112 categories of Unicode 16.0.0 at once: FNV-1a over their numbers
// (tests/golden/text/unicode_hashes.py).
TEST(UnicodeTest, CategoriesAreThoseOfUnicode16) {
  uint64_t hash = 0xCBF29CE484222325ull;
  for (char32_t c = 0; c < 0x110000; ++c) {
    const Category category = UnicodeTable::Get().CategoryOf(c);
    hash = (hash ^ static_cast<uint8_t>(category)) * 0x100000001B3ull;
    const ClassMask classes = UnicodeTable::Get().Classes(c);
    ASSERT_EQ(classes & ~kWhiteSpace, MaskOf(category)) << static_cast<uint32_t>(c);
  }
  EXPECT_EQ(hash, 0x73ec1e58fd66ce47ull);
}

TEST(UnicodeTest, CategoriesOfNewAndOldCharacters) {
  const auto category = [](char32_t c) { return UnicodeTable::Get().CategoryOf(c); };
  EXPECT_EQ(category('a'), Category::kLl);
  EXPECT_EQ(category(0x01C5), Category::kLt);
  EXPECT_EQ(category(0x1C89), Category::kLu);   // Unicode 16
  EXPECT_EQ(category(0x10D41), Category::kNd);  // Unicode 16
  EXPECT_EQ(category(0x31350), Category::kLo);  // Unicode 15
  EXPECT_EQ(category(0x10FFFF), Category::kCn);
}

TEST(UnicodeTest, WhiteSpace) {
  int count = 0;
  for (char32_t c = 0; c < 0x110000; ++c) count += IsWhiteSpace(c);
  EXPECT_EQ(count, 25);  // PropList: White_Space
  for (const char32_t c : {0x09, 0x0D, 0x20, 0x85, 0xA0, 0x1680, 0x200A, 0x2028, 0x3000}) {
    EXPECT_TRUE(IsWhiteSpace(c)) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : {0x08, 0x1C, 0x180E, 0x200B, 0xFEFF}) {
    EXPECT_FALSE(IsWhiteSpace(c)) << static_cast<uint32_t>(c);
  }
}

TEST(UnicodeTest, WordCharacters) {
  for (const char32_t c : {U'a', U'_', U'7', U'é', U'\u0301', U'\u200D', U'Ⓐ', U'Ⅷ'}) {
    EXPECT_TRUE(IsWordCharacter(c)) << static_cast<uint32_t>(c);
  }
  for (const char32_t c : {U' ', U'-', U'²', U'½', U'$', U'\u200B'}) {
    EXPECT_FALSE(IsWordCharacter(c)) << static_cast<uint32_t>(c);
  }
}

}  // namespace
}  // namespace qlora::engine
