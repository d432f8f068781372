#include "engine/text/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/text/byte_level.h"

namespace qlora::engine {
namespace {

using Ids = std::vector<int32_t>;

Ids Encode(const Bpe& bpe, absl::string_view word) {
  Ids ids;
  bpe.EncodeText(word, ids);
  return ids;
}

// The definition: the pair of lowest rank, leftmost of equals, again and again.
Ids ByDefinition(const BpeSpec& spec, absl::string_view word) {
  std::vector<std::string> symbols;
  for (const char c : word) symbols.emplace_back(1, c);
  while (true) {
    size_t best_rank = spec.merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (spec.merges[rank] == std::pair(symbols[i], symbols[i + 1])) {
          best_rank = rank;
          best = i;
        }
      }
    }
    if (best_rank == spec.merges.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + best + 1);
  }
  Ids ids;
  for (const std::string& s : symbols) ids.push_back(spec.vocab.at(s));
  return ids;
}

TEST(BpeTest, MergesInOrderOfRankWhateverTheLength) {
  // A random merge table over two letters: many overlapping pairs.
  BpeSpec spec;
  std::vector<std::string> tokens = {"a", "b"};
  uint64_t state = 5;
  const auto draw = [&](uint64_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % n;
  };
  for (const std::string& t : tokens) spec.vocab.emplace(t, spec.vocab.size());
  while (spec.merges.size() < 60) {
    const std::string left = tokens[draw(tokens.size())];
    const std::string right = tokens[draw(tokens.size())];
    const std::pair merge(left, right);
    if (left.size() + right.size() > 7 ||
        std::count(spec.merges.begin(), spec.merges.end(), merge) != 0) {
      continue;
    }
    spec.merges.push_back(merge);
    if (spec.vocab.try_emplace(left + right, spec.vocab.size()).second) {
      tokens.push_back(left + right);
    }
  }
  const auto bpe = Bpe::Make(spec);
  ASSERT_TRUE(bpe.ok()) << bpe.status();
  for (int i = 0; i < 300; ++i) {
    std::string word;
    // Words of up to 80 letters: short ones are scanned, long ones use a heap.
    for (uint64_t n = draw(80) + 1; n > 0; --n) word += "ab"[draw(2)];
    ASSERT_EQ(Encode(**bpe, word), ByDefinition(spec, word)) << word;
  }
}

TEST(BpeTest, LongWordsTakeTimeOfOrderNLogN) {
  BpeSpec spec;
  spec.vocab = {{"a", 0}, {"aa", 1}, {"aaaa", 2}};
  spec.merges = {{"a", "a"}, {"aa", "aa"}};
  const auto bpe = Bpe::Make(spec);
  EXPECT_EQ(Encode(**bpe, std::string(1 << 20, 'a')), Ids(1 << 18, 2));
}

TEST(BpeTest, OfEqualMergesTheLaterRankCounts) {
  BpeSpec spec;
  spec.vocab = {{"a", 0}, {"b", 1}, {"c", 2}, {"ab", 3}, {"bc", 4}};
  spec.merges = {{"a", "b"}, {"b", "c"}, {"a", "b"}};
  EXPECT_EQ(Encode(**Bpe::Make(spec), "abc"), (Ids{0, 4}));
}

TEST(BpeTest, UnknownCharacters) {
  BpeSpec spec;
  spec.vocab = {{"a", 0}, {"<unk>", 1}, {"<0xC3>", 2}, {"<0xA9>", 3}};
  EXPECT_EQ(Encode(**Bpe::Make(spec), "aéßa"), (Ids{0, 0}));  // without unk they are dropped
  spec.unk_token = "<unk>";
  EXPECT_EQ(Encode(**Bpe::Make(spec), "aéßa"), (Ids{0, 1, 1, 0}));
  spec.fuse_unk = true;
  EXPECT_EQ(Encode(**Bpe::Make(spec), "aéßa"), (Ids{0, 1, 0}));
  spec.byte_fallback = true;
  EXPECT_EQ(Encode(**Bpe::Make(spec), "aéa"), (Ids{0, 2, 3, 0}));
  // Half of the bytes of ß are missing; é after it overtakes the pending unk, as in the library.
  EXPECT_EQ(Encode(**Bpe::Make(spec), "ßéa"), (Ids{2, 3, 1, 0}));
  spec.unk_token = "missing";
  EXPECT_FALSE(Bpe::Make(spec).ok());
}

TEST(BpeTest, ByteFallbackTokensTakePartInMerges) {
  BpeSpec spec;
  spec.byte_fallback = true;
  spec.vocab = {{"<0xC3>", 0}, {"<0xA9>", 1}, {"<0xC3><0xA9>", 2}};
  spec.merges = {{"<0xC3>", "<0xA9>"}};
  EXPECT_EQ(Encode(**Bpe::Make(spec), "é"), (Ids{2}));
}

TEST(BpeTest, BytesAndTheirSpellingGiveTheSameIds) {
  BpeSpec spec;
  for (int b = 0; b < 256; ++b) {
    spec.vocab[ToByteLevel(std::string(1, static_cast<char>(b)))] = b;
  }
  spec.vocab["Ġt"] = 256;
  spec.vocab["zebra"] = 257;
  spec.merges = {{"Ġ", "t"}};
  spec.ignore_merges = true;
  const auto bpe = Bpe::Make(spec);
  ASSERT_TRUE((*bpe)->has_all_bytes());
  for (const std::string& word :
       {std::string(" t"), std::string(" t t t"), std::string("zebra"), std::string("é"),
        std::string("\0x", 2), std::string("a word longer than the cache takes, twice over")}) {
    for (int again = 0; again < 2; ++again) {
      Ids ids;
      (*bpe)->EncodeBytes(word, ids);
      EXPECT_EQ(ids, Encode(**bpe, ToByteLevel(word))) << word;
    }
  }
  spec.vocab.erase("a");
  EXPECT_FALSE((*Bpe::Make(spec))->has_all_bytes());
}

}  // namespace
}  // namespace qlora::engine
