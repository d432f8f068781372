// Data files that are refused, each with its line.

#include "tests/engine/data/byte_tokenizer.h"
#include "tests/tools/workplace.h"

namespace qlora::tests {
namespace {

constexpr char kGood[] = "{\"prompt\": \"a\", \"completion\": \"b\"}\n";

class BadData : public Workplace {
 protected:
  void Data(const std::string& text) const { Write("data.jsonl", text); }
};

TEST_F(BadData, Absent) {
  ExpectRefused(65, {"absent.jsonl"}, {"--set", "data.train_file=" + Path("absent.jsonl")});
}

TEST_F(BadData, Empty) {
  Data("");
  ExpectRefused(65, {"data.jsonl"});
}

TEST_F(BadData, InvalidJson) {
  Data(std::string(kGood) + kGood + "{\"prompt\": \"a\", \n" + kGood);
  ExpectRefused(65, {"data.jsonl:3", "JSON"});
}

TEST_F(BadData, InvalidUtf8) {
  Data(std::string(kGood) + "{\"prompt\": \"a\xff\", \"completion\": \"b\"}\n");
  ExpectRefused(65, {"data.jsonl:2", "UTF-8"});
}

TEST_F(BadData, WrongFieldNames) {
  data_ = "format: PROMPT_COMPLETION";
  Data("{\"question\": \"a\", \"answer\": \"b\"}\n");
  ExpectRefused(65, {"data.jsonl:1", "prompt", "question", "answer"});
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
  ExpectRefused(65, {"data.jsonl", "no trained token"});
}

TEST_F(BadData, IdOutsideTheVocabulary) {
  data_ = "format: PRETOKENIZED";
  Data("{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 272]}\n");
  ExpectRefused(65, {"data.jsonl:2", "272"});
}

TEST_F(BadData, DeepNesting) {
  Data("{\"prompt\": " + std::string(100000, '[') + "\n");
  ExpectRefused(65, {"data.jsonl:1"});
}

TEST_F(BadData, TokenizerAbsent) {
  ASSERT_EQ(std::remove(Path("base/tokenizer.json").c_str()), 0);
  ExpectRefused(65, {"tokenizer.json"});
}

TEST_F(BadData, TokenizerMalformed) {
  Write("base/tokenizer.json", "{\"model\": ");
  ExpectRefused(65, {"base: tokenizer.json: byte 11"});
}

TEST_F(BadData, TokenizerLargerThanTheVocabulary) {
  Edit("base/tokenizer.json", "\"added_tokens\":[", R"("added_tokens":[{"id":300,"content":"<|x|>",
    "single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},)");
  ExpectRefused(65, {"tokenizer.json"});
}

}  // namespace
}  // namespace qlora::tests
