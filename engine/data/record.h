// A record of a data file, whatever its format, as one of four kinds of things to learn from.
#ifndef QLORA_ENGINE_DATA_RECORD_H_
#define QLORA_ENGINE_DATA_RECORD_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/chat_format.h"
#include "proto/job.pb.h"

namespace qlora::engine {

struct Record {
  enum class Kind { kText, kPromptCompletion, kChat, kPretokenized };
  Kind kind = Kind::kText;
  std::string text;                   // kText
  std::string prompt, completion;     // kPromptCompletion, and Alpaca's with its prompt written out
  std::vector<ChatMessage> messages;  // kChat
  std::vector<int32_t> ids;           // kPretokenized
  std::vector<uint8_t> trained;       // kPretokenized, one per id
};

// The format whose keys `json` has. DataLoss lists the keys found and those of each format.
absl::StatusOr<proto::DataFormat::Value> DetectFormat(const nlohmann::json& json,
                                                      const proto::Data& data);

// `json` (an object) read as `format`, which is not AUTO; `data` has its defaults. Keys that the
// format does not use are ignored. DataLoss names the key, what was found and what is allowed,
// without the place in the file.
//   MESSAGES        "messages" [{role, content}], or ShareGPT's "conversations" [{from, value}];
//                   content is text, a list of {"type": "text"} parts, or null. Tools are refused.
//   PROMPT_COMPLETION   two texts, or two lists of messages of which the second is trained
//   PRETOKENIZED    "input_ids", "labels" (-100 or the id itself), "attention_mask" (0 at the ends
//   only)
absl::StatusOr<Record> ReadRecord(const nlohmann::json& json, proto::DataFormat::Value format,
                                  const proto::Data& data);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_RECORD_H_
