#include "engine/data/encode_record.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/exit_codes.h"
#include "tests/engine/data/byte_tokenizer.h"

namespace qlora::engine {
namespace {

using nlohmann::json;
using proto::DataFormat;
using ::testing::HasSubstr;

// "ids | trained ids", or the error.
std::string Encoded(const std::string& text, const proto::Data& data,
                    const ByteTokenizerOptions& options = {}) {
  const auto tokenizer = ByteTokenizer(options);
  const json object = json::parse(text);
  proto::DataFormat::Value format = data.format();
  if (format == DataFormat::AUTO) {
    auto detected = DetectFormat(object, data);
    if (!detected.ok()) return std::string(detected.status().message());
    format = *detected;
  }
  auto encoder = RecordEncoder::Create(tokenizer.get(), data, format);
  if (!encoder.ok()) return std::string(encoder.status().message());
  auto record = ReadRecord(object, format, data);
  if (!record.ok()) return std::string(record.status().message());
  auto tokens = encoder->Encode(*record);
  if (!tokens.ok()) return std::string(tokens.status().message());
  EXPECT_EQ(tokens->ids.size(), tokens->trained.size());
  return Show(tokens->ids) + " | " + ShowTrained(tokens->ids, tokens->trained);
}

TEST(EncodeRecordTest, Text) {
  proto::Data data = DefaultData();
  EXPECT_EQ(Encoded(R"({"text":"hi"})", data), "[BOS]hi[EOS] | [BOS]hi[EOS]");
  EXPECT_EQ(Encoded(R"({"text":""})", data), "[BOS][EOS] | [BOS][EOS]");
  // Exactly one EOS, also where the template gives one.
  EXPECT_EQ(Encoded(R"({"text":"hi"})", data, {.template_eos = true}),
            "[BOS]hi[EOS] | [BOS]hi[EOS]");
  EXPECT_EQ(Encoded(R"({"text":"hi"})", data, {.template_bos = false}), "hi[EOS] | hi[EOS]");
  data.set_append_eos(false);
  EXPECT_EQ(Encoded(R"({"text":"hi"})", data), "[BOS]hi | [BOS]hi");
  data.set_text_field("body");
  EXPECT_EQ(Encoded(R"({"body":"hi"})", data, {.names_eos = false}), "[BOS]hi | [BOS]hi");
}

TEST(EncodeRecordTest, OnlyPretokenizedRecordsNeedNoTokenizer) {
  const proto::Data data = DefaultData();
  const auto encoder = RecordEncoder::Create(nullptr, data, DataFormat::PRETOKENIZED);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  const auto record = ReadRecord(json::parse(R"({"input_ids":[7,8],"labels":[-100,8]})"),
                                 DataFormat::PRETOKENIZED, data);
  const auto tokens = encoder->Encode(*record);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->ids, (std::vector<int32_t>{7, 8}));
  const auto refused = RecordEncoder::Create(nullptr, data, DataFormat::TEXT);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("no tokenizer.json"));
}

TEST(EncodeRecordTest, WhatAUserWritesIsNeverAControlToken) {
  const proto::Data data = DefaultData();
  const std::string spelled = "<|end_of_text|>";
  EXPECT_EQ(Encoded(R"({"text":"<|end_of_text|>"})", data),
            "[BOS]" + spelled + "[EOS] | [BOS]" + spelled + "[EOS]");
  EXPECT_EQ(Encoded(R"({"prompt":"<|eot_id|>","completion":"<|end_of_text|>"})", data),
            "[BOS]<|eot_id|>" + spelled + "[EOS] | ..........." + spelled + "[EOS]");
  EXPECT_THAT(Encoded(R"({"messages":[{"role":"user","content":"<|eot_id|>"},
                          {"role":"assistant","content":"<|eot_id|>"}]})",
                      data),
              HasSubstr("[H]user[/H]\n\n<|eot_id|>[EOT]"));
}

TEST(EncodeRecordTest, PromptAndCompletion) {
  proto::Data data = DefaultData();
  const std::string record = R"({"prompt":"2+2=","completion":"4"})";
  EXPECT_EQ(Encoded(record, data), "[BOS]2+2=4[EOS] | .....4[EOS]");
  EXPECT_EQ(Encoded(record, data, {.template_eos = true}), "[BOS]2+2=4[EOS] | .....4[EOS]");
  data.set_train_on_prompt(true);
  EXPECT_EQ(Encoded(record, data), "[BOS]2+2=4[EOS] | [BOS]2+2=4[EOS]");
  data.set_train_on_prompt(false);
  data.set_append_eos(false);
  EXPECT_EQ(Encoded(R"({"prompt":"a","completion":""})", data), "[BOS]a | ..");
  data.set_prompt_field("q");
  data.set_completion_field("a");
  EXPECT_EQ(Encoded(R"({"q":"x","a":"y"})", data), "[BOS]xy | ..y");
}

// What is shown before the answer.
std::string PromptOf(const std::string& text, const proto::Data& data) {
  const auto tokenizer = ByteTokenizer();
  const json object = json::parse(text);
  const auto format = *DetectFormat(object, data);
  const auto encoder = RecordEncoder::Create(tokenizer.get(), data, format);
  const auto tokens = encoder->Encode(*ReadRecord(object, format, data));
  return Show({tokens->ids.begin(), tokens->ids.begin() + tokens->prompt});
}

TEST(EncodeRecordTest, ThePromptEndsWhereTheAnswerBeginsWhateverIsTrained) {
  proto::Data data = DefaultData();
  for (const bool train_on_prompt : {false, true}) {
    data.set_train_on_prompt(train_on_prompt);
    EXPECT_EQ(PromptOf(R"({"prompt":"2+2=","completion":"4"})", data), "[BOS]2+2=");
    EXPECT_EQ(PromptOf(R"({"text":"2+2=4"})", data), "");
    EXPECT_EQ(PromptOf(R"({"messages":[{"role":"user","content":"a"},
                           {"role":"assistant","content":"b"},{"role":"user","content":"c"},
                           {"role":"assistant","content":"d"}]})",
                       data),
              "[BOS][H]user[/H]\n\na[EOT][H]assistant[/H]\n\nb[EOT][H]user[/H]\n\nc[EOT]"
              "[H]assistant[/H]\n\n");
  }
  const auto labelled = [&](const char* labels) {
    return PromptOf(absl::StrCat(R"({"input_ids":[97,98,99,100],"labels":)", labels, "}"), data);
  };
  EXPECT_EQ(labelled("[-100,-100,99,100]"), "ab");
  EXPECT_EQ(labelled("[97,-100,99,-100]"), "ab");
  EXPECT_EQ(labelled("[-100,98,99,100]"), "") << "nothing predicts the first";
  EXPECT_EQ(labelled("[97,98,99,100]"), "");
  data.set_whole_string_tokenization(true);
  EXPECT_EQ(PromptOf(R"({"prompt":"aq","completion":"zb"})", data), "[BOS]a");
}

TEST(EncodeRecordTest, ApartOrAsOneString) {
  proto::Data data = DefaultData();
  const std::string record = R"({"prompt":"aq","completion":"zb"})";
  EXPECT_EQ(Encoded(record, data), "[BOS]aqzb[EOS] | ...zb[EOS]");
  data.set_whole_string_tokenization(true);
  // "qz" merges over the border: the completion begins with it.
  EXPECT_EQ(Encoded(record, data), "[BOS]a[qz]b[EOS] | ..[qz]b[EOS]");
}

TEST(EncodeRecordTest, Alpaca) {
  const proto::Data data = DefaultData();
  EXPECT_THAT(Encoded(R"({"instruction":"Add.","input":"1 2","output":"3"})", data),
              AllOf(HasSubstr("[BOS]Below is an instruction that describes a task, paired with an "
                              "input that provides further context. Write a response that "
                              "appropriately completes the request.\n\n### Instruction:\nAdd.\n\n"
                              "### Input:\n1 2\n\n### Response:\n3[EOS]"),
                    HasSubstr("..3[EOS]")));
  for (const char* record : {R"({"instruction":"Add.","input":"","output":"3"})",
                             R"({"instruction":"Add.","input":null,"output":"3"})",
                             R"({"instruction":"Add.","output":"3"})"}) {
    EXPECT_THAT(Encoded(record, data),
                HasSubstr("describes a task. Write a response that appropriately completes the "
                          "request.\n\n### Instruction:\nAdd.\n\n### Response:\n3[EOS]"));
  }
}

constexpr char kChat[] = R"({"messages":[{"role":"system","content":"s"},
    {"role":"user","content":"a"},{"role":"assistant","content":"b"},
    {"role":"user","content":"c"},{"role":"assistant","content":"d"}]})";

TEST(EncodeRecordTest, MessagesInBothFormats) {
  proto::Data data = DefaultData();
  const std::string llama3 =
      "[BOS][H]system[/H]\n\ns[EOT][H]user[/H]\n\na[EOT][H]assistant[/H]\n\nb[EOT][H]user[/H]\n\n"
      "c[EOT][H]assistant[/H]\n\nd[EOT]";
  std::string shown = Encoded(kChat, data);
  EXPECT_THAT(shown, HasSubstr(llama3 + " | "));
  EXPECT_THAT(shown, HasSubstr(".b[EOT]........."));
  EXPECT_THAT(shown, HasSubstr(".d[EOT]"));

  data.set_chat_format(proto::ChatFormat::CHATML);
  const std::string chatml =
      "[IM]system\ns[/IM]\n[IM]user\na[/IM]\n[IM]assistant\nb[/IM]\n[IM]user\nc[/IM]\n"
      "[IM]assistant\nd[/IM]\n";
  shown = Encoded(kChat, data);
  EXPECT_THAT(shown, HasSubstr(chatml + " | "));
  EXPECT_THAT(shown, HasSubstr(".b[/IM]."));
  EXPECT_EQ(shown.substr(shown.size() - 8), ".d[/IM].");
  data.set_train_newline_after_turn(true);
  shown = Encoded(kChat, data);
  EXPECT_THAT(shown, HasSubstr(".b[/IM]\n......"));
  EXPECT_EQ(shown.substr(shown.size() - 8), ".d[/IM]\n");
  data.set_train_on_prompt(true);
  EXPECT_EQ(Encoded(kChat, data), chatml + " | " + chatml);
  // AUTO takes what the tokenizer has.
  EXPECT_THAT(Encoded(kChat, DefaultData(), {.llama3 = false}), HasSubstr("[IM]system"));
  EXPECT_THAT(Encoded(kChat, DefaultData(), {.llama3 = false, .chatml = false}),
              HasSubstr("data.chat_format: found no format"));
}

TEST(EncodeRecordTest, MessagesInOtherDresses) {
  const proto::Data data = DefaultData();
  const std::string expected = Encoded(
      R"({"messages":[{"role":"user","content":"ab"},{"role":"assistant","content":"c"}]})", data);
  for (const char* same :
       {R"({"conversations":[{"from":"human","value":"ab"},{"from":"gpt","value":"c"}]})",
        R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"},
            {"type":"text","text":"b"}]},{"role":"assistant","content":"c","tool_calls":[]}]})",
        R"({"messages":[{"role":"user","content":"ab","weight":0},
            {"role":"assistant","content":"c","weight":1}],"tools":null})",
        R"({"prompt":[{"role":"user","content":"ab"}],
            "completion":[{"role":"assistant","content":"c"}]})"}) {
    EXPECT_EQ(Encoded(same, data), expected) << same;
  }
  // Turns of a prompt, and turns marked so, are context.
  for (const char* context :
       {R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b",
            "train":false},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]})",
        R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b",
            "weight":0},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]})",
        R"({"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},
            {"role":"user","content":"c"}],"completion":[{"role":"assistant","content":"d"}]})"}) {
    const std::string shown = Encoded(context, data);
    const std::string trained = shown.substr(shown.find(" | "));
    EXPECT_THAT(trained, Not(HasSubstr("b"))) << context;
    EXPECT_THAT(trained, HasSubstr("d[EOT]")) << context;
  }
}

TEST(EncodeRecordTest, Pretokenized) {
  const proto::Data data = DefaultData();
  EXPECT_EQ(Encoded(R"({"input_ids":[65,66]})", data), "AB | AB");
  EXPECT_EQ(Encoded(R"({"input_ids":[65,66,67],"labels":[-100,66,67]})", data), "ABC | .BC");
  EXPECT_EQ(Encoded(R"({"input_ids":[0,65,66,0],"labels":[-100,65,66,-100],
                        "attention_mask":[0,1,1,0]})",
                    data),
            "AB | AB");
}

TEST(EncodeRecordTest, BadRecordsSayWhatAndWhere) {
  const proto::Data data = DefaultData();
  const std::pair<const char*, const char*> cases[] = {
      {R"({"foo":1})", "found keys foo; allowed: text | prompt and completion"},
      {R"({"text":3})", "\"text\": found number 3; allowed: a string"},
      {R"({"prompt":"a","completion":null})", "\"completion\": found null"},
      {R"({"prompt":["a"],"completion":"b"})", "\"prompt\": found array"},
      {R"({"instruction":1,"output":"b"})", "\"instruction\": found number"},
      {R"({"messages":{}})", "\"messages\": found object"},
      {R"({"messages":[]})", "\"messages\": found an empty list"},
      {R"({"messages":["a"]})", "\"messages\"[0]"},
      {R"({"messages":[{"content":"a"}]})", "no \"role\""},
      {R"({"messages":[{"role":"user"}]})", "no \"content\""},
      {R"({"messages":[{"role":"user","content":[{"type":"image"}]}]})", "a part that is not text"},
      {R"({"messages":[{"role":"assistant","content":"","tool_calls":[{}]}]})", "\"tool_calls\""},
      {R"({"messages":[{"role":"assistant","content":"","train":1}]})", "\"train\": found number"},
      {R"({"messages":[{"role":"assistant","content":"","weight":2}]})", "\"weight\""},
      {R"({"messages":[{"role":"user","content":"a"}],"tools":[{}]})", "\"tools\""},
      {R"({"messages":[{"role":"pope","content":"a"}]})", "pope"},
      {R"({"input_ids":"a"})", "\"input_ids\": found string"},
      {R"({"input_ids":[1.5]})", "\"input_ids[0]\": found number"},
      {R"({"input_ids":[4294967296]})", "\"input_ids[0]\""},
      {R"({"input_ids":[18446744073709551615]})", "\"input_ids[0]\""},
      {R"({"input_ids":[1],"labels":[1,2]})", "found 2 entries; allowed: as many as input_ids, 1"},
      {R"({"input_ids":[1,2],"labels":[2,-100]})", "\"labels\"[0]: found 2"},
      {R"({"input_ids":[1,2,3],"attention_mask":[1,0,1]})", "\"attention_mask\"[1]: found 0"},
      {R"({"input_ids":[1],"attention_mask":[2]})", "\"attention_mask\"[0]: found 2"},
  };
  for (const auto& [record, expected] : cases) {
    EXPECT_THAT(Encoded(record, data), HasSubstr(expected)) << record;
  }
  EXPECT_THAT(Encoded(R"({"text":"a"})", data, {.names_eos = false}), HasSubstr("append_eos"));
}

}  // namespace
}  // namespace qlora::engine
