#include "engine/text/unicode_normal_form.h"

#include <gtest/gtest.h>

#include <vector>

#include "engine/text/utf8.h"

namespace qlora::engine {
namespace {

constexpr uint64_t kBasis = 0xCBF29CE484222325ull;

void Fnv1a(absl::string_view text, uint64_t& hash) {
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3ull;
}

std::string Utf8(std::u32string_view text) {
  std::string out;
  for (const char32_t c : text) AppendUtf8(c, out);
  return out;
}

TEST(UnicodeNormalFormTest, Examples) {
  EXPECT_EQ(ToNfc(""), "");
  EXPECT_EQ(ToNfc("plain ASCII"), "plain ASCII");
  EXPECT_EQ(ToNfc(Utf8(U"e\u0301")), "é");
  EXPECT_EQ(ToNfd("é"), Utf8(U"e\u0301"));
  EXPECT_EQ(ToNfc(Utf8(U"\u212B")), "Å");                          // a singleton
  EXPECT_EQ(ToNfc(Utf8(U"\u0958")), Utf8(U"\u0915\u093C"));        // excluded from composition
  EXPECT_EQ(ToNfc(Utf8(U"\u1E9B\u0323")), Utf8(U"\u1E9B\u0323"));  // UAX 15, figure 5
  EXPECT_EQ(ToNfd(Utf8(U"\u1E9B\u0323")), Utf8(U"\u017F\u0323\u0307"));
  EXPECT_EQ(ToNfc(Utf8(U"q\u0307\u0323")), Utf8(U"q\u0323\u0307"));  // reordered
  EXPECT_EQ(ToNfc(Utf8(U"a\u0315\u0300")), Utf8(U"\u00E0\u0315"));   // over a lower class
  EXPECT_EQ(ToNfc(Utf8(U"\u1100\u1161\u11A8")), Utf8(U"\uAC01"));    // Hangul
  EXPECT_EQ(ToNfc(Utf8(U"\uAC00\u11A7")), Utf8(U"\uAC00\u11A7"));    // not a final consonant
  EXPECT_EQ(ToNfd(Utf8(U"\uAC01")), Utf8(U"\u1100\u1161\u11A8"));
  EXPECT_EQ(ToNfc(Utf8(U"\u0301")), Utf8(U"\u0301"));
}

// Against unicodedata2 16.0.0 (tests/golden/text/unicode_hashes.py).
TEST(UnicodeNormalFormTest, EveryCodePoint) {
  uint64_t nfc = kBasis;
  uint64_t nfd = kBasis;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    AppendUtf8(c, text);
    Fnv1a(ToNfc(text), nfc);
    Fnv1a(ToNfd(text), nfd);
  }
  EXPECT_EQ(nfc, 0x23fc43766d7c2eb9ull);
  EXPECT_EQ(nfd, 0x2d0c150ba0b45aadull);
}

TEST(UnicodeNormalFormTest, RandomStrings) {
  std::vector<char32_t> pool;
  constexpr char32_t kBlocks[][2] = {{0xC0, 0x3200},     {0xAC00, 0xAC80},   {0xF900, 0xFB50},
                                     {0x11000, 0x11A00}, {0x1D15E, 0x1D1AA}, {0x16D60, 0x16D70}};
  for (const auto& [first, last] : kBlocks) {
    for (char32_t c = first; c < last; ++c) pool.push_back(c);
  }
  uint64_t state = 1;
  const auto draw = [&] {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return state >> 33;
  };
  uint64_t nfc = kBasis;
  uint64_t nfd = kBasis;
  for (int i = 0; i < 100000; ++i) {
    std::string text;
    for (uint64_t n = draw() % 6 + 1; n > 0; --n) AppendUtf8(pool[draw() % pool.size()], text);
    const std::string composed = ToNfc(text);
    Fnv1a(composed, nfc);
    Fnv1a(ToNfd(text), nfd);
    ASSERT_EQ(ToNfc(composed), composed);
  }
  EXPECT_EQ(nfc, 0x30c731f41ae4ec76ull);
  EXPECT_EQ(nfd, 0x520e1ec905f30fc5ull);
}

}  // namespace
}  // namespace qlora::engine
