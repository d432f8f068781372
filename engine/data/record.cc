#include "engine/data/record.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using nlohmann::json;
using proto::BadDataError;
using proto::DataFormat;

// Label of tokens that are not trained on, PyTorch's ignore_index.
constexpr int64_t kIgnoredLabel = -100;

absl::Status Mistyped(absl::string_view key, const json& found, absl::string_view allowed) {
  return BadDataError(absl::StrCat("\"", key, "\": found ", found.type_name(),
                                   found.is_number() ? " " + found.dump() : "",
                                   "; allowed: ", allowed));
}

bool Has(const json& object, const std::string& key) { return object.contains(key); }

// `field` is the job's field that names the key, if one does.
absl::StatusOr<std::string> Text(const json& object, const std::string& key,
                                 absl::string_view field = "") {
  const auto found = object.find(key);
  if (found == object.end()) {
    std::vector<std::string> keys;
    for (const auto& item : object.items()) keys.push_back(item.key());
    if (keys.size() > 10) keys.resize(10);
    std::string message = absl::StrCat("no \"", key, "\"; found ");
    absl::StrAppend(&message, keys.empty() ? "no key" : "keys: ", absl::StrJoin(keys, ", "));
    if (!field.empty() && !keys.empty()) {
      absl::StrAppend(&message, "; set ", field, " to the key that holds it, or data.format");
    }
    return BadDataError(message);
  }
  if (!found->is_string()) return Mistyped(key, *found, "a string");
  return found->get<std::string>();
}

// Text, a list of text parts, or null, which Transformers writes for an empty content.
absl::StatusOr<std::string> Content(const json& value, const std::string& key) {
  if (value.is_null()) return std::string();
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return Mistyped(key, value, "a string or a list of text parts");
  std::string text;
  for (const json& part : value) {
    const bool is_text = part.is_object() && part.contains("type") && part["type"] == "text" &&
                         part.contains("text") && part["text"].is_string();
    if (!is_text) {
      return BadDataError(absl::StrCat("\"", key, "\": found a part that is not text; allowed: ",
                                       R"({"type": "text", "text": "..."})"));
    }
    text += part["text"].get<std::string>();
  }
  return text;
}

// ShareGPT's names of the roles.
std::string StandardRole(const std::string& role) {
  if (role == "human") return "user";
  if (role == "gpt") return "assistant";
  return role;
}

absl::StatusOr<std::optional<bool>> TrainFlag(const json& message) {
  if (Has(message, "train")) {
    if (!message["train"].is_boolean()) return Mistyped("train", message["train"], "true or false");
    return std::optional<bool>(message["train"].get<bool>());
  }
  if (Has(message, "weight")) {
    if (message["weight"] == 0) return std::optional<bool>(false);
    if (message["weight"] != 1) {
      return BadDataError("\"weight\": allowed: 0 (context only) or 1 (trained)");
    }
  }
  return std::optional<bool>();
}

absl::StatusOr<ChatMessage> ReadMessage(const json& message) {
  if (!message.is_object()) return Mistyped("messages", message, "objects in the list");
  const bool share_gpt = !Has(message, "role") && Has(message, "from");
  const std::string content_key = share_gpt ? "value" : "content";
  const json& calls = Has(message, "tool_calls") ? message["tool_calls"] : json();
  if (!calls.is_null() && !(calls.is_array() && calls.empty())) {
    return BadDataError("\"tool_calls\": calls of tools can't be rendered; remove such records");
  }
  auto role = Text(message, share_gpt ? "from" : "role");
  if (!role.ok()) return role.status();
  if (!Has(message, content_key)) return Text(message, content_key).status();
  auto content = Content(message[content_key], content_key);
  if (!content.ok()) return content.status();
  auto train = TrainFlag(message);
  if (!train.ok()) return train.status();
  ChatMessage result;
  result.role = StandardRole(*role);
  result.content = *std::move(content);
  result.train = *train;
  // A weight of 0 on a user's turn says what is so anyway.
  if (result.role != "assistant" && result.train == false) result.train.reset();
  return result;
}

absl::Status ReadMessages(const json& list, const std::string& key,
                          std::vector<ChatMessage>& messages) {
  if (!list.is_array()) return Mistyped(key, list, "a list of messages");
  if (list.empty()) return BadDataError(absl::StrCat("\"", key, "\": found an empty list"));
  for (size_t i = 0; i < list.size(); ++i) {
    auto message = ReadMessage(list[i]);
    if (!message.ok()) {
      return proto::Annotate(message.status(), absl::StrCat("\"", key, "\"[", i, "]"));
    }
    messages.push_back(*std::move(message));
  }
  return absl::OkStatus();
}

absl::StatusOr<Record> ReadChat(const json& object) {
  Record record;
  record.kind = Record::Kind::kChat;
  const std::string key = Has(object, "messages") ? "messages" : "conversations";
  if (!Has(object, key)) return Text(object, "messages").status();
  if (Has(object, "tools") && !object["tools"].is_null() && !object["tools"].empty()) {
    return BadDataError("\"tools\": tools can't be rendered; remove such records");
  }
  if (absl::Status status = ReadMessages(object[key], key, record.messages); !status.ok()) {
    return status;
  }
  return record;
}

// Both fields as lists of messages: the turns of the prompt are context.
absl::StatusOr<Record> ReadChatPromptCompletion(const json& prompt, const json& completion,
                                                const proto::Data& data) {
  Record record;
  record.kind = Record::Kind::kChat;
  absl::Status status = ReadMessages(prompt, data.prompt_field(), record.messages);
  for (ChatMessage& message : record.messages) {
    if (message.role == "assistant") message.train = false;
  }
  if (status.ok()) status = ReadMessages(completion, data.completion_field(), record.messages);
  if (!status.ok()) return status;
  return record;
}

absl::StatusOr<Record> ReadPromptCompletion(const json& object, const proto::Data& data) {
  const std::string& prompt_key = data.prompt_field();
  const std::string& completion_key = data.completion_field();
  if (Has(object, prompt_key) && Has(object, completion_key) && object[prompt_key].is_array() &&
      object[completion_key].is_array()) {
    return ReadChatPromptCompletion(object[prompt_key], object[completion_key], data);
  }
  auto prompt = Text(object, prompt_key, "data.prompt_field");
  if (!prompt.ok()) return prompt.status();
  auto completion = Text(object, completion_key, "data.completion_field");
  if (!completion.ok()) return completion.status();
  Record record;
  record.kind = Record::Kind::kPromptCompletion;
  record.prompt = *std::move(prompt);
  record.completion = *std::move(completion);
  return record;
}

// The prompts of Stanford Alpaca (Taori et al. 2023), less their tail.
std::string AlpacaPrompt(const std::string& instruction, const std::string& input) {
  const bool with_input = !input.empty();
  return absl::StrCat(
      "Below is an instruction that describes a task",
      with_input ? ", paired with an input that provides further context" : "",
      ". Write a response that appropriately completes the request.\n\n### Instruction:\n",
      instruction, with_input ? "\n\n### Input:\n" : "", input, "\n\n### Response:");
}

absl::StatusOr<Record> ReadAlpaca(const json& object, const proto::Data& data) {
  auto instruction = Text(object, "instruction");
  if (!instruction.ok()) return instruction.status();
  auto output = Text(object, "output");
  if (!output.ok()) return output.status();
  std::string input;
  if (Has(object, "input") && !object["input"].is_null()) {
    auto text = Text(object, "input");
    if (!text.ok()) return text.status();
    input = *std::move(text);
  }
  Record record;
  record.kind = Record::Kind::kPromptCompletion;
  record.prompt = AlpacaPrompt(*instruction, input) + data.alpaca_response_tail();
  record.completion = *std::move(output);
  return record;
}

absl::StatusOr<std::vector<int64_t>> Integers(const json& object, const std::string& key) {
  if (!Has(object, key)) return Text(object, key).status();
  const json& list = object[key];
  if (!list.is_array()) return Mistyped(key, list, "a list of integers");
  std::vector<int64_t> values;
  values.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const bool fits = list[i].is_number_integer() &&
                      !(list[i].is_number_unsigned() &&
                        list[i].get<uint64_t>() > std::numeric_limits<int32_t>::max()) &&
                      list[i].get<int64_t>() >= std::numeric_limits<int32_t>::min();
    if (!fits) return Mistyped(absl::StrCat(key, "[", i, "]"), list[i], "an integer of 32 bits");
    values.push_back(list[i].get<int64_t>());
  }
  return values;
}

// Optional list of the same length as input_ids, all `otherwise` where the key is absent.
absl::StatusOr<std::vector<int64_t>> Parallel(const json& object, const std::string& key,
                                              const std::vector<int64_t>& otherwise) {
  if (!Has(object, key) || object[key].is_null()) return otherwise;
  auto values = Integers(object, key);
  if (values.ok() && values->size() != otherwise.size()) {
    return BadDataError(absl::StrCat("\"", key, "\": found ", values->size(),
                                     " entries; allowed: as many as input_ids, ",
                                     otherwise.size()));
  }
  return values;
}

absl::StatusOr<Record> ReadPretokenized(const json& object) {
  auto ids = Integers(object, "input_ids");
  if (!ids.ok()) return ids.status();
  auto labels = Parallel(object, "labels", *ids);
  if (!labels.ok()) return labels.status();
  auto mask = Parallel(object, "attention_mask", std::vector<int64_t>(ids->size(), 1));
  if (!mask.ok()) return mask.status();
  size_t begin = 0, end = ids->size();
  while (begin < end && (*mask)[begin] == 0) ++begin;
  while (begin < end && (*mask)[end - 1] == 0) --end;
  Record record;
  record.kind = Record::Kind::kPretokenized;
  for (size_t i = begin; i < end; ++i) {
    const int64_t id = (*ids)[i], label = (*labels)[i];
    if ((*mask)[i] != 1) {
      return BadDataError(absl::StrCat("\"attention_mask\"[", i, "]: found ", (*mask)[i],
                                       "; allowed: 1, and 0 for padding at either end"));
    }
    if (label != kIgnoredLabel && label != id) {
      return BadDataError(absl::StrCat("\"labels\"[", i, "]: found ", label,
                                       "; allowed: -100, or the id itself, ", id,
                                       " (labels are not shifted)"));
    }
    record.ids.push_back(static_cast<int32_t>(id));
    record.trained.push_back(label != kIgnoredLabel);
  }
  return record;
}

}  // namespace

absl::StatusOr<DataFormat::Value> DetectFormat(const json& object, const proto::Data& data) {
  if (Has(object, "input_ids")) return DataFormat::PRETOKENIZED;
  if (Has(object, "messages") || Has(object, "conversations")) return DataFormat::MESSAGES;
  if (Has(object, data.prompt_field()) && Has(object, data.completion_field())) {
    return DataFormat::PROMPT_COMPLETION;
  }
  if (Has(object, "instruction") && Has(object, "output")) return DataFormat::ALPACA;
  if (Has(object, data.text_field())) return DataFormat::TEXT;
  std::vector<std::string> keys;
  for (const auto& item : object.items()) keys.push_back(item.key());
  if (keys.size() > 10) keys.resize(10);
  return BadDataError(
      absl::StrCat("found keys ", absl::StrJoin(keys, ", "), "; allowed: ", data.text_field(),
                   " | ", data.prompt_field(), " and ", data.completion_field(),
                   " | messages | instruction and output | input_ids; set data.prompt_field, "
                   "data.completion_field or data.text_field to the names in this file"));
}

absl::StatusOr<Record> ReadRecord(const json& object, DataFormat::Value format,
                                  const proto::Data& data) {
  switch (format) {
    case DataFormat::PROMPT_COMPLETION:
      return ReadPromptCompletion(object, data);
    case DataFormat::MESSAGES:
      return ReadChat(object);
    case DataFormat::ALPACA:
      return ReadAlpaca(object, data);
    case DataFormat::PRETOKENIZED:
      return ReadPretokenized(object);
    default: {
      auto text = Text(object, data.text_field(), "data.text_field");
      if (!text.ok()) return text.status();
      Record record;
      record.text = *std::move(text);
      return record;
    }
  }
}

}  // namespace qlora::engine
