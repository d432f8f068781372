// Tokenizers and data.
#include <memory>

#include "engine/data/encode_record.h"
#include "engine/data/jsonl.h"
#include "engine/data/record.h"
#include "engine/text/tokenizer.h"
#include "engine/text/utf8.h"
#include "proto/job_defaults.h"
#include "tests/engine/data/byte_tokenizer.h"
#include "tests/fuzz/fuzz_target.h"

namespace qlora::tests {

using engine::SpecialTokens;
using engine::Tokenizer;

void FuzzTokenizer(absl::string_view input) {
  const absl::string_view file = TakeText(&input), config = TakeText(&input);
  const auto tokenizer = Tokenizer::FromJson(file, config);
  if (!tokenizer.ok()) return;
  const absl::string_view text = input.substr(0, 256);
  for (const SpecialTokens special : {SpecialTokens::kParse, SpecialTokens::kPlain}) {
    const auto ids = (*tokenizer)->Encode(text, special, true);
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) {
      Require(id >= 0 && id < (*tokenizer)->vocab_size(), "ids are of the vocabulary");
    }
    (void)(*tokenizer)->Decode(*ids, true);
  }
}

void FuzzRecords(absl::string_view input) {
  static const auto* const kFiles =
      new std::pair<std::string, std::string>(engine::ByteTokenizerFiles());
  static const Tokenizer* const kTokenizer =
      Tokenizer::FromJson(kFiles->first, kFiles->second)->release();
  static const auto* const kDefaults = new proto::Data(proto::WithDefaults(proto::Job()).data());

  const uint8_t settings = TakeByte(&input);
  const int choice = (settings & 7) % proto::DataFormat::Value_ARRAYSIZE;
  proto::Data data = *kDefaults;
  data.set_train_on_prompt((settings & 8) != 0);
  data.set_whole_string_tokenization((settings & 16) != 0);
  data.set_train_newline_after_turn((settings & 32) != 0);
  if ((settings & 64) != 0) data.set_chat_format(proto::ChatFormat::CHATML);
  const auto lines = engine::SplitJsonl(input, "data.jsonl", 64);
  if (!lines.ok()) return;
  for (const engine::JsonlLine& line : *lines) {
    const auto json = engine::ParseJsonlLine(line, "data.jsonl");
    if (!json.ok()) continue;
    auto format = static_cast<proto::DataFormat::Value>(choice);
    if (format == proto::DataFormat::AUTO) {
      const auto detected = engine::DetectFormat(*json, data);
      if (!detected.ok()) continue;
      format = *detected;
    }
    const auto record = engine::ReadRecord(*json, format, data);
    if (!record.ok()) continue;
    const auto encoder = engine::RecordEncoder::Create(kTokenizer, data, format);
    Require(encoder.ok(), "this tokenizer has what every format needs");
    const auto tokens = encoder->Encode(*record);
    if (tokens.ok()) Require(tokens->ids.size() == tokens->trained.size(), "a mark for each id");
  }
}

}  // namespace qlora::tests
