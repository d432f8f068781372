// Ids and decoded text against the tokenizers library (tests/golden/text/generate.py), case by
// case.
#include <gtest/gtest.h>

#include <thread>

#include "tests/engine/text/golden_files.h"

namespace qlora::engine {
namespace {

class TokenizerGoldenTest : public testing::TestWithParam<const char*> {};

struct Case {
  std::string text;
  SpecialTokens special;
  bool add;
  std::vector<int32_t> ids;
  std::string decoded, skipped;
};

std::vector<Case> ReadCases(const std::string& name) {
  std::vector<Case> cases;
  for (const nlohmann::json& line : GoldenLines(name + ".cases.jsonl")) {
    Case c;
    c.text = line["text"];
    c.special = line.value("plain", false) ? SpecialTokens::kPlain : SpecialTokens::kParse;
    c.add = line.value("add", false);
    c.ids = line["ids"].get<std::vector<int32_t>>();
    c.decoded = line.value("decoded", c.text);
    c.skipped = line.value("skipped", c.decoded);
    cases.push_back(std::move(c));
  }
  return cases;
}

TEST_P(TokenizerGoldenTest, EqualsTheLibrary) {
  const std::unique_ptr<Tokenizer> tokenizer = GoldenTokenizer(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<Case> cases = ReadCases(GetParam());
  EXPECT_GE(cases.size(), 100u);
  for (const Case& c : cases) {
    const auto ids = tokenizer->Encode(c.text, c.special, c.add);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, c.ids) << testing::PrintToString(c.text) << " plain "
                           << (c.special == SpecialTokens::kPlain) << " add " << c.add;
    EXPECT_EQ(tokenizer->Decode(c.ids, false), c.decoded);
    EXPECT_EQ(tokenizer->Decode(c.ids, true), c.skipped);
  }
}

// The words that threads keep must not leak between texts, tokenizers or threads.
TEST_P(TokenizerGoldenTest, SameIdsFromSeveralThreadsAndBesideAnotherTokenizer) {
  const std::unique_ptr<Tokenizer> tokenizer = GoldenTokenizer(GetParam());
  const std::unique_ptr<Tokenizer> other = GoldenTokenizer("gpt2");
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<Case> cases = ReadCases(GetParam());
  std::vector<int> wrong(3, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < cases.size(); ++i) {
        const Case& c = cases[(i + t * 31) % cases.size()];
        other->Encode(c.text, c.special, c.add).status().IgnoreError();
        const auto ids = tokenizer->Encode(c.text, c.special, c.add);
        wrong[t] += !ids.ok() || *ids != c.ids;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(3, 0));
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerGoldenTest,
                         testing::Values("llama3", "gpt2", "qwen2", "qwen3_5", "tekken", "o200k",
                                         "llama2", "gemma", "metaspace", "metaspace_always",
                                         "flags", "deepseek", "behaviours"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace qlora::engine
