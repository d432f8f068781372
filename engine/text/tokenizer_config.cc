#include "engine/text/tokenizer_config.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/io/json_file.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using nlohmann::json;

// The content of a token given as "..." or {"content": "..."}; empty when it is neither.
std::string ContentOf(const json& token) {
  if (token.is_string()) return token.get<std::string>();
  if (!token.is_object()) return "";
  const auto content = token.find("content");
  return content != token.end() && content->is_string() ? content->get<std::string>() : "";
}

}  // namespace

absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(absl::string_view text) {
  TokenizerConfig config;
  if (text.empty()) return config;
  const absl::StatusOr<json> parsed = ParseJson(text, "tokenizer_config.json");
  if (!parsed.ok()) return proto::BadDataError(parsed.status().message());
  const json& root = *parsed;
  if (!root.is_object()) {
    return proto::BadDataError("tokenizer_config.json: expected an object");
  }
  for (const auto& [name, content] :
       {std::pair("bos_token", &config.bos), std::pair("eos_token", &config.eos),
        std::pair("pad_token", &config.pad)}) {
    const auto field = root.find(name);
    if (field == root.end() || field->is_null()) continue;
    *content = ContentOf(*field);
    if (content->empty()) {
      return proto::BadDataError(absl::StrCat("tokenizer_config.json: ", name,
                                              ": expected a token, or an object with its content"));
    }
    config.special.insert(*content);
  }
  for (const char* const name : {"unk_token", "sep_token", "cls_token", "mask_token"}) {
    if (const auto field = root.find(name); field != root.end()) {
      config.special.insert(ContentOf(*field));
    }
  }
  for (const char* const name : {"additional_special_tokens", "extra_special_tokens"}) {
    const auto field = root.find(name);
    if (field == root.end() || !field->is_structured()) continue;
    for (const json& token : *field) config.special.insert(ContentOf(token));
  }
  if (const auto field = root.find("added_tokens_decoder");
      field != root.end() && field->is_object()) {
    for (const json& token : *field) {
      const auto special = token.is_object() ? token.find("special") : token.end();
      if (token.is_object() && special != token.end() && *special == json(true)) {
        config.special.insert(ContentOf(token));
      }
    }
  }
  config.special.erase("");
  return config;
}

}  // namespace qlora::engine
