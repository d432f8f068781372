// Data files that are refused, each with its line.

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

constexpr char kGood[] = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";

class BadData : public Workplace {
 protected:
  void Data(const std::string& text) const { Write("data.jsonl", text); }
};

TEST_F(BadData, Absent) {
  ExpectRefused(65, {"data.train_file: ", "absent.jsonl"},
                {"--set", "data.train_file=" + Path("absent.jsonl")});
}

TEST_F(BadData, AFolder) {
  ExpectRefused(65, {"data.train_file: ", "is a folder"},
                {"--set", "data.train_file=" + Path("base")});
}

TEST_F(BadData, Empty) {
  Data("");
  ExpectRefused(65, {"data.jsonl"});
}

TEST_F(BadData, InvalidJson) {
  Data(std::string(kGood) + kGood + "{\"prompt\": \"a\", \n" + kGood);
  ExpectRefused(65, {"data.jsonl:3: not valid JSON: byte 17: "});
}

TEST_F(BadData, InvalidUtf8) {
  Data(std::string(kGood) + "{\"prompt\": \"a\xff\", \"completion\": \"b\"}\n");
  ExpectRefused(65, {"data.jsonl:2: byte 13", "0xff", "save the file as UTF-8"});
}

TEST_F(BadData, WrongFieldNames) {
  data_ = "format: PROMPT_COMPLETION";
  Data("{\"question\": \"a\", \"answer\": \"b\"}\n");
  ExpectRefused(
      65, {"data.jsonl:1: no \"prompt\"; found keys: answer, question; set data.prompt_field"});
}

TEST_F(BadData, WrongFieldNamesOfNoKnownFormat) {
  data_ = "";
  Data("{\"question\": \"a\", \"answer\": \"b\"}\n");
  ExpectRefused(65, {"data.jsonl:1", "found keys", "answer", "prompt and completion", "set data."});
}

TEST_F(BadData, OneFieldNameOfTwo) {
  Data("{\"prompt\": \"a\", \"answer\": \"b\"}\n");
  ExpectRefused(65, {"no \"completion\"; found keys: answer, prompt; set data.completion_field"});
}

TEST_F(BadData, HeldOutFileToo) {
  Write("held_out.jsonl", std::string(kGood) + "nonsense\n");
  ExpectRefused(65, {"held_out.jsonl:2: not valid JSON"},
                {"--set", "data.eval_file=" + Path("held_out.jsonl")});
  ExpectRefused(65, {"data.eval_file: ", "gone.jsonl"},
                {"--set", "data.eval_file=" + Path("gone.jsonl")});
}

TEST_F(BadData, NothingLeftToHoldOut) {
  Data(kGood);
  ExpectRefused(65, {"data.jsonl has 1 sample", "data.eval_fraction needs two"},
                {"--set", "data.eval_fraction=0.5"});
}

TEST_F(BadData, ChatWithoutControlTokens) {
  data_ = "format: MESSAGES";
  Data(
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})");
  const std::string tokenizer = Read("base/tokenizer.json");
  Write("base/tokenizer.json",
        absl::StrReplaceAll(tokenizer, {{"<|eot_id|>", "<|other|>"}, {"<|im_end|>", "<|also|>"}}));
  // With what else the model finds wrong with the job.
  ExpectRefused(64,
                {"data.chat_format", "lora.target_modules[0]: \"nothing\" matches no",
                 "data.max_length: found 65; allowed: at most 64"},
                {"--set", "data.max_length=65", "--set", "lora.target_modules=nothing"});
}

TEST_F(BadData, MistypedField) {
  Data(std::string(kGood) + "{\"prompt\": 7, \"completion\": \"b\"}\n");
  ExpectRefused(65, {"data.jsonl:2", "prompt", "number"});
}

TEST_F(BadData, SeveralBadLinesAtOnce) {
  Data("{}\n" + std::string(kGood) + "[]\n");
  ExpectRefused(65, {"data.jsonl:1", "data.jsonl:3"});
}

TEST_F(BadData, NoTrainedToken) {
  data_ = "format: PRETOKENIZED";
  Data("{\"input_ids\": [1, 2, 3], \"labels\": [-100, -100, -100]}\n");
  ExpectRefused(65, {"data.jsonl: found no trained token in 1 records", "1 without a token"});
}

TEST_F(BadData, PromptsThatLeaveNoRoom) {
  ExpectRefused(65,
                {"data.jsonl: found no trained token in 8 records", "data.max_length, 4",
                 "8 cut to it before their answers", "raise it"},
                {"--set", "data.max_length=4"});
}

TEST_F(BadData, IdOutsideTheVocabulary) {
  data_ = "format: PRETOKENIZED";
  Data("{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 272]}\n");
  ExpectRefused(65, {"data.jsonl:2: token id 272 is outside", "allowed: 0 to 271"});
}

TEST_F(BadData, DeepNesting) {
  Data("{\"prompt\": " + std::string(100000, '[') + "\n");
  ExpectRefused(65, {"data.jsonl:1", "nested deeper than 64 levels"});
}

TEST_F(BadData, TokenizerAbsent) {
  ASSERT_EQ(std::remove(Path("base/tokenizer.json").c_str()), 0);
  ExpectRefused(65, {"base/tokenizer.json does not exist", "save_pretrained"});
  data_ = "";  // which may be pretokenized, and turns out not to be
  ExpectRefused(65, {"data.jsonl", "PROMPT_COMPLETION", "no tokenizer.json"});
}

TEST_F(BadData, TokenizerMalformed) {
  Write("base/tokenizer.json", "{\"model\": ");
  ExpectRefused(65, {"base: tokenizer.json: byte 11: not valid JSON: parse error"});
}

TEST_F(BadData, TokenizerThatNumbersAnotherWay) {
  Edit("base/tokenizer.json", "\"added_tokens\":[", R"("added_tokens":[{"id":300,"content":"<|x|>",
    "single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},)");
  ExpectRefused(65, {"tokenizer.json: added_tokens[0].id", "300"});
}

TEST_F(BadData, TokenizerLargerThanTheVocabulary) {
  auto tokenizer = nlohmann::json::parse(Read("base/tokenizer.json"));
  nlohmann::json& added = tokenizer["added_tokens"];
  while (added.back()["id"] < 300) {
    nlohmann::json next = added.back();
    next["id"] = next["id"].get<int>() + 1;
    next["content"] = absl::StrCat("<|more_", added.size(), "|>");
    added.push_back(next);
  }
  Write("base/tokenizer.json", tokenizer.dump());
  ExpectRefused(65, {"base/tokenizer.json has token ids up to 300", "base/config.json", "272",
                     "Use the tokenizer that belongs to the model"});
}

}  // namespace
}  // namespace qlora::tests
