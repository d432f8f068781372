#include "engine/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "tests/engine/text/golden_files.h"

namespace qlora::engine {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json Llama3() { return json::parse(GoldenText("llama3.tokenizer.json")); }

absl::Status LoadStatus(const json& root) { return Tokenizer::FromJson(root.dump(), "").status(); }

TEST(TokenizerTest, NamesIdsAndSpecialTokens) {
  const char* const config = R"({"bos_token": "<|begin_of_text|>",
      "eos_token": {"content": "<|end_of_text|>", "lstrip": false}, "pad_token": null})";
  const auto tokenizer = Tokenizer::FromJson(GoldenText("llama3.tokenizer.json"), config);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.vocab_size(), 485);
  EXPECT_EQ(t.bos_id(), 480);
  EXPECT_EQ(t.eos_id(), 481);
  EXPECT_EQ(t.pad_id(), std::nullopt);
  EXPECT_EQ(t.TokenId("<|eot_id|>"), 484);
  EXPECT_EQ(t.TokenText(484), "<|eot_id|>");
  EXPECT_EQ(t.TokenId("no such token"), std::nullopt);
  EXPECT_EQ(t.TokenText(485), "");
  EXPECT_EQ(t.TokenText(-1), "");
  EXPECT_TRUE(t.IsControl(484));
  EXPECT_FALSE(t.IsControl(0));
  EXPECT_FALSE(t.IsControl(485));
  EXPECT_EQ(t.Decode({-5, 484, 100000}, false), "<|eot_id|>");
}

TEST(TokenizerTest, PlainTextNeverBecomesAControlToken) {
  for (const char* const name : {"llama3", "qwen2", "llama2", "gemma", "metaspace", "flags"}) {
    const std::unique_ptr<Tokenizer> t = GoldenTokenizer(name);
    for (int32_t id = 0; id < t->vocab_size(); ++id) {
      if (!t->IsControl(id)) continue;
      const std::string text = "a " + t->TokenText(id) + " b" + t->TokenText(id);
      const auto plain = t->Encode(text, SpecialTokens::kPlain, false);
      const auto parsed = t->Encode(text, SpecialTokens::kParse, false);
      ASSERT_TRUE(plain.ok() && parsed.ok());
      EXPECT_THAT(*parsed, testing::Contains(id)) << name;
      for (const int32_t got : *plain) {
        // The unknown token of a vocabulary without byte fallback is what unknown characters
        // become.
        EXPECT_TRUE(!t->IsControl(got) || t->TokenText(got) == "<unk>") << name << " " << text;
      }
    }
  }
}

TEST(TokenizerTest, TokensThatOnlyTheConfigCallsSpecialAreControlToo) {
  json root = Llama3();
  for (json& token : root["added_tokens"]) token["special"] = false;
  root["added_tokens"].push_back({{"id", 485}, {"content", "END"}, {"special", false}});
  root["added_tokens"].push_back({{"id", 486}, {"content", "<think>"}, {"special", false}});
  const auto encode = [&](const char* config, absl::string_view text) {
    const auto t = Tokenizer::FromJson(root.dump(), config);
    EXPECT_TRUE(t.ok()) << t.status();
    return *(*t)->Encode(text, SpecialTokens::kPlain, false);
  };
  EXPECT_EQ(encode("", "END<think>"), (std::vector<int32_t>{485, 486}));
  EXPECT_EQ(encode("", "<|eot_id|>").size(), 10u);
  for (const char* const config :
       {R"({"eos_token": "END"})", R"({"additional_special_tokens": ["END"]})",
        R"({"added_tokens_decoder": {"485": {"content": "END", "special": true}}})"}) {
    EXPECT_THAT(encode(config, "END<think>"), testing::Not(testing::Contains(485))) << config;
    EXPECT_THAT(encode(config, "END<think>"), testing::Contains(486)) << config;
  }
}

// With ignore_merges and no pre-tokenizer, a whole text that is a token's content would be that
// token.
TEST(TokenizerTest, ControlTokensAreNeitherWholeWordsNorMerged) {
  for (const bool ignore_merges : {true, false}) {
    json root = {{"added_tokens", {{{"id", 3}, {"content", "ab"}, {"special", true}}}},
                 {"model",
                  {{"type", "BPE"},
                   {"vocab", {{"a", 0}, {"b", 1}, {"c", 2}, {"ab", 3}}},
                   {"merges", json::array({json::array({"a", "b"})})},
                   {"ignore_merges", ignore_merges}}}};
    const auto t = Tokenizer::FromJson(root.dump(), "");
    ASSERT_TRUE(t.ok()) << t.status();
    EXPECT_EQ(*(*t)->Encode("ab", SpecialTokens::kPlain, false), (std::vector<int32_t>{0, 1}));
    EXPECT_EQ(*(*t)->Encode("ab", SpecialTokens::kParse, false), (std::vector<int32_t>{3}));
  }
}

TEST(TokenizerTest, TextThatIsNotUtf8IsRefusedWithItsPlace) {
  const std::unique_ptr<Tokenizer> t = GoldenTokenizer("llama3");
  const auto ids = t->Encode("abc\xFF", SpecialTokens::kPlain, false);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(ids.status().message(), HasSubstr("byte 3"));
}

TEST(TokenizerTest, TruncationAndPaddingInTheFileAreIgnored) {
  json root = Llama3();
  root["truncation"] = {{"max_length", 2}, {"strategy", "LongestFirst"}, {"stride", 0}};
  root["padding"] = {{"strategy", {{"Fixed", 64}}}, {"pad_id", 0}};
  const auto t = Tokenizer::FromJson(root.dump(), "");
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_EQ((*t)->Encode("!!a!!b!!", SpecialTokens::kPlain, false)->size(),
            GoldenTokenizer("llama3")->Encode("!!a!!b!!", SpecialTokens::kPlain, false)->size());
}

TEST(TokenizerTest, LoadsAFolder) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / "tokenizer_test_folder";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  EXPECT_EQ(Tokenizer::Load(folder.string()).status().code(), absl::StatusCode::kNotFound);
  std::ofstream(folder / "tokenizer.json") << Llama3().dump();
  auto t = Tokenizer::Load(folder.string());
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_EQ((*t)->bos_id(), std::nullopt);
  std::ofstream(folder / "tokenizer_config.json") << R"({"bos_token": "<|begin_of_text|>"})";
  t = Tokenizer::Load(folder.string());
  ASSERT_TRUE(t.ok()) << t.status();
  EXPECT_EQ((*t)->bos_id(), 480);
  std::ofstream(folder / "tokenizer_config.json") << "{";
  EXPECT_THAT(Tokenizer::Load(folder.string()).status().message(),
              testing::AllOf(HasSubstr("tokenizer_test_folder"), HasSubstr("tokenizer_config")));
}

struct Fault {
  const char* names;  // what the message must hold
  std::function<void(json&)> make;
};

TEST(TokenizerTest, PartsThatAreNotSupportedAreRefusedByName) {
  const Fault faults[] = {
      {"Unigram",
       [](json& j) {
         j["model"] = {{"type", "Unigram"}, {"vocab", json::array({json::array({"a", -1.5})})}};
       }},
      {"WordPiece", [](json& j) { j["model"]["type"] = "WordPiece"; }},
      {"model.dropout", [](json& j) { j["model"]["dropout"] = 0.1; }},
      {"continuing_subword_prefix",
       [](json& j) { j["model"]["continuing_subword_prefix"] = "##"; }},
      {"end_of_word_suffix", [](json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }},
      {"BertNormalizer",
       [](json& j) {
         j["normalizer"] = {{"type", "BertNormalizer"}};
       }},
      {"normalizer.normalizers[1]: normalizer \"NFKC\"",
       [](json& j) {
         j["normalizer"] = {{"type", "Sequence"},
                            {"normalizers", {{{"type", "NFC"}}, {{"type", "NFKC"}}}}};
       }},
      {"pre_tokenizer.pretokenizers[2]: pre-tokenizer \"Punctuation\"",
       [](json& j) {
         j["pre_tokenizer"]["pretokenizers"].push_back({{"type", "Punctuation"}});
       }},
      {"behavior: \"Sideways\"",
       [](json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Sideways"; }},
      {"pattern: regular expression `\\w+`: \\w",
       [](json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+"; }},
      {"RobertaProcessing",
       [](json& j) {
         j["post_processor"] = {{"type", "RobertaProcessing"}};
       }},
      {"CTC",
       [](json& j) {
         j["decoder"] = {{"type", "CTC"}};
       }},
      {"surprise", [](json& j) { j["surprise"] = 1; }},
  };
  for (const Fault& fault : faults) {
    json root = Llama3();
    fault.make(root);
    const absl::Status status = LoadStatus(root);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << fault.names;
    EXPECT_THAT(status.message(), HasSubstr(fault.names));
  }
}

TEST(TokenizerTest, ContentsThatContradictThemselvesAreRefusedWithTheirPlace) {
  const Fault faults[] = {
      {"model: expected an object", [](json& j) { j.erase("model"); }},
      {"model.vocab", [](json& j) { j["model"].erase("vocab"); }},
      {"model.merges", [](json& j) { j["model"].erase("merges"); }},
      {"model.vocab[\"new\"]: a negative id", [](json& j) { j["model"]["vocab"]["new"] = -1; }},
      {"model.vocab[\"new\"]: expected an id", [](json& j) { j["model"]["vocab"]["new"] = "x"; }},
      {"model.vocab[\"new\"]: expected an id", [](json& j) { j["model"]["vocab"]["new"] = 1.5; }},
      {"largest allowed", [](json& j) { j["model"]["vocab"]["new"] = 1 << 24; }},
      {"belongs to both", [](json& j) { j["model"]["vocab"]["a"] = 7; }},
      {"model.merges[0]: a merge has two",
       [](json& j) {
         j["model"]["merges"][0] = {"a", "b", "c"};
       }},
      {"`a b c` is not two tokens", [](json& j) { j["model"]["merges"][0] = "a b c"; }},
      {"model.merges[1]: expected a merge", [](json& j) { j["model"]["merges"][1] = 5; }},
      {"model.merges[1]: expected a token",
       [](json& j) {
         j["model"]["merges"][1] = {{"a"}, "b"};
       }},
      {"model.merges[1]: `nowhere` is not in model.vocab",
       [](json& j) {
         j["model"]["merges"][1] = {"nowhere", "a"};
       }},
      {"`zq` is not in model.vocab",
       [](json& j) {
         j["model"]["merges"][1] = {"z", "q"};
       }},
      {"model.unk_token", [](json& j) { j["model"]["unk_token"] = "<nope>"; }},
      {"model.ignore_merges: expected true", [](json& j) { j["model"]["ignore_merges"] = 1; }},
      {"added_tokens[0].id", [](json& j) { j["added_tokens"][0]["id"] = -1; }},
      {"numbering of the tokenizers library is 480",
       [](json& j) { j["added_tokens"][0]["id"] = 490; }},
      {"but model.vocab gives it 480",
       [](json& j) {
         j["model"]["vocab"]["<|begin_of_text|>"] = 480;
         j["added_tokens"][0]["id"] = 481;
       }},
      {"appears twice", [](json& j) { j["added_tokens"][1] = j["added_tokens"][0]; }},
      {"added_tokens[2].content", [](json& j) { j["added_tokens"][2]["content"] = ""; }},
      {"added_tokens[2].lstrip", [](json& j) { j["added_tokens"][2]["lstrip"] = "no"; }},
      {"added_tokens: expected an array", [](json& j) { j["added_tokens"] = "none"; }},
      {"normalizer: no \"type\"", [](json& j) { j["normalizer"] = json::object(); }},
      {"pre_tokenizer: expected an object", [](json& j) { j["pre_tokenizer"] = 3; }},
      {"pretokenizers[0].pattern",
       [](json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"] = "x"; }},
      {"at byte",
       [](json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a"; }},
      {"post_processor: id 9999 has no token",
       [](json& j) {
         j["post_processor"]["processors"][1]["special_tokens"]["<|begin_of_text|>"]["ids"] = {
             9999};
       }},
      {"special_tokens[\"<|begin_of_text|>\"].ids",
       [](json& j) { j["post_processor"]["processors"][1]["special_tokens"] = json::object(); }},
      {"no Sequence \"A\"",
       [](json& j) { j["post_processor"]["processors"][1]["single"].erase(1); }},
      {"single[1]: Sequence \"B\"",
       [](json& j) { j["post_processor"]["processors"][1]["single"][1]["Sequence"]["id"] = "B"; }},
  };
  for (const Fault& fault : faults) {
    json root = Llama3();
    fault.make(root);
    const absl::Status status = LoadStatus(root);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << fault.names;
    EXPECT_THAT(status.message(), HasSubstr(fault.names));
  }
}

TEST(TokenizerTest, BrokenJsonIsRefused) {
  const std::string good = GoldenText("llama3.tokenizer.json");
  ASSERT_TRUE(Tokenizer::FromJson(good, "").ok());
  for (size_t size = 0; size + 2 < good.size(); size += 97) {
    const absl::Status status = Tokenizer::FromJson(good.substr(0, size), "").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << size;
    EXPECT_THAT(status.message(), HasSubstr("byte "));
  }
  const std::string deep(100000, '[');
  const std::pair<std::string, const char*> broken[] = {
      {"[]", "expected an object"},
      {"{\"model\": " + deep, "nested deeper"},
      {"{\"model\": {\"vocab\": {\"a\": 0, \"a\": 0}}}", "the token appears twice"},
      {"{\"model\": {\"vocab\": {}, \"vocab\": {}}}", "the field appears twice"},
      {"{\"version\": 1, \"version\": 2}", "the field appears twice"},
      {"{\"model\": {\"vocab\": {\"\xFF\": 0}}}", "byte "},
      {"{} x", "byte "},
  };
  for (const auto& [text, message] : broken) {
    const absl::Status status = Tokenizer::FromJson(text, "").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << text.substr(0, 60);
    EXPECT_THAT(status.message(), HasSubstr(message));
  }
  EXPECT_EQ(Tokenizer::FromJson(good, "[1]").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Tokenizer::FromJson(good, R"({"eos_token": 5})").status().message(),
              HasSubstr("eos_token"));
}

// Random damage must end in a status or a working tokenizer, never in a crash.
TEST(TokenizerTest, DamagedFilesDoNotCrash) {
  const std::string good = GoldenText("behaviours.tokenizer.json");
  uint64_t state = 12345;
  for (int i = 0; i < 400; ++i) {
    std::string damaged = good;
    for (int k = 0; k < 3; ++k) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      damaged[(state >> 33) % damaged.size()] = "{}[]\",:0aN\\"[(state >> 20) % 11];
    }
    const auto t = Tokenizer::FromJson(damaged, "");
    if (!t.ok()) continue;
    EXPECT_TRUE((*t)->Encode("Some text 12", SpecialTokens::kParse, true).ok());
  }
}

}  // namespace
}  // namespace qlora::engine
