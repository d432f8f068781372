#include "engine/text/chat_format.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/unicode.h"
#include "engine/text/utf8.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

// As the models' published templates render them.
constexpr ChatFormat kFormats[] = {
    {.name = "llama3",
     .bos = "<|begin_of_text|>",
     .header_before = "<|start_header_id|>",
     .header_after = "<|end_header_id|>\n\n",
     .end_of_turn = "<|eot_id|>",
     .separator = "",
     .trim = true},
    {.name = "chatml",
     .bos = "",
     .header_before = "<|im_start|>",
     .header_after = "\n",
     .end_of_turn = "<|im_end|>",
     .separator = "\n",
     .trim = false},
};

constexpr absl::string_view kAssistant = "assistant";

// What the templates' `trim` takes for space: White_Space and the four information separators.
bool IsTrimmed(char32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); }

absl::string_view Trimmed(absl::string_view text) {
  while (!text.empty()) {
    const CodePoint first = Utf8At(text, 0);
    if (!IsTrimmed(first.value)) break;
    text.remove_prefix(first.size);
  }
  while (!text.empty()) {
    const size_t last = Utf8StartBefore(text, text.size());
    if (!IsTrimmed(Utf8At(text, last).value)) break;
    text = text.substr(0, last);
  }
  return text;
}

absl::Status CheckMessage(const ChatMessage& message, size_t index) {
  const auto bad = [&](absl::string_view what) {
    return proto::BadDataError(absl::StrCat("messages[", index, "]", what));
  };
  if (message.role != "system" && message.role != "user" && message.role != kAssistant) {
    return bad(absl::StrCat(".role is \"", message.role,
                            "\"; known roles are system, user and assistant"));
  }
  if (message.role == "system" && index != 0) {
    return bad(".role is \"system\", which only the first message may be");
  }
  if (message.train.value_or(false) && message.role != kAssistant) {
    return bad(absl::StrCat(".train is true, but only assistant messages are trained on, not \"",
                            message.role, "\""));
  }
  const size_t error = Utf8ErrorOffset(message.content);
  if (error != message.content.size()) {
    return bad(absl::StrCat(".content is not UTF-8 at byte ", error));
  }
  return absl::OkStatus();
}

// Appends to the last segment where it is of the same kind and a literal, else begins a new one.
void Append(std::vector<ChatSegment>& segments, absl::string_view text, bool is_literal,
            bool trained) {
  if (text.empty()) return;
  if (is_literal && !segments.empty() && segments.back().is_literal &&
      segments.back().trained == trained) {
    absl::StrAppend(&segments.back().text, text);
    return;
  }
  segments.push_back({std::string(text), is_literal, trained});
}

}  // namespace

absl::StatusOr<const ChatFormat*> FindChatFormat(absl::string_view name) {
  std::string known;
  for (const ChatFormat& format : kFormats) {
    if (format.name == name) return &format;
    absl::StrAppend(&known, known.empty() ? "" : ", ", format.name);
  }
  return proto::BadJobError(
      absl::StrCat("chat format \"", name, "\" is not known; there are: ", known));
}

absl::StatusOr<std::vector<ChatSegment>> RenderChat(const ChatFormat& format,
                                                    absl::Span<const ChatMessage> messages,
                                                    ChatEnding ending) {
  if (messages.empty()) return proto::BadDataError("messages is empty");
  std::vector<ChatSegment> segments;
  Append(segments, format.bos, true, false);
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (absl::Status status = CheckMessage(message, i); !status.ok()) return status;
    const bool trained = message.role == kAssistant && message.train.value_or(true) &&
                         ending == ChatEnding::kComplete;
    Append(segments, absl::StrCat(format.header_before, message.role, format.header_after), true,
           false);
    Append(segments, format.trim ? Trimmed(message.content) : message.content, false, trained);
    Append(segments, format.end_of_turn, true, trained);
    Append(segments, format.separator, true, false);
  }
  if (ending == ChatEnding::kGenerationPrompt) {
    Append(segments, absl::StrCat(format.header_before, kAssistant, format.header_after), true,
           false);
  }
  return segments;
}

absl::Status CheckChatTokenizer(const ChatFormat& format, const Tokenizer& tokenizer) {
  const std::string pieces =
      absl::StrCat(format.bos, format.header_before, format.header_after, format.end_of_turn);
  for (size_t at = pieces.find("<|"); at != std::string::npos; at = pieces.find("<|", at)) {
    const size_t end = pieces.find("|>", at);
    if (end == std::string::npos) break;
    const std::string token = pieces.substr(at, end + 2 - at);
    at = end + 2;
    const std::optional<int32_t> id = tokenizer.TokenId(token);
    if (!id || !tokenizer.IsControl(*id)) {
      return proto::BadJobError(
          absl::StrCat("chat format ", format.name, " needs the control token ", token,
                       ", which the model's tokenizer does not have; choose a format that the "
                       "model knows, or train on prompt and completion"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ChatTokens> EncodeChat(const ChatFormat& format, const Tokenizer& tokenizer,
                                      absl::Span<const ChatMessage> messages, ChatEnding ending) {
  if (absl::Status status = CheckChatTokenizer(format, tokenizer); !status.ok()) return status;
  const absl::StatusOr<std::vector<ChatSegment>> segments = RenderChat(format, messages, ending);
  if (!segments.ok()) return segments.status();
  ChatTokens tokens;
  for (const ChatSegment& segment : *segments) {
    const absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(
        segment.text, segment.is_literal ? SpecialTokens::kParse : SpecialTokens::kPlain,
        /*add_bos_eos_by_post_processor=*/false);
    if (!ids.ok()) return ids.status();
    const bool follows_prompt = !tokens.trained.empty() && !tokens.trained.back();
    if (segment.trained && follows_prompt) tokens.prompt = int64_t(tokens.ids.size());
    tokens.ids.insert(tokens.ids.end(), ids->begin(), ids->end());
    tokens.trained.resize(tokens.ids.size(), segment.trained);
  }
  return tokens;
}

absl::StatusOr<bool> ChatEqualsWholeText(const ChatFormat& format, const Tokenizer& tokenizer,
                                         absl::Span<const ChatMessage> messages) {
  const absl::StatusOr<ChatTokens> tokens =
      EncodeChat(format, tokenizer, messages, ChatEnding::kComplete);
  if (!tokens.ok()) return tokens.status();
  const absl::StatusOr<std::vector<ChatSegment>> segments =
      RenderChat(format, messages, ChatEnding::kComplete);
  if (!segments.ok()) return segments.status();
  std::string text;
  for (const ChatSegment& segment : *segments) text += segment.text;
  const absl::StatusOr<std::vector<int32_t>> ids =
      tokenizer.Encode(text, SpecialTokens::kParse, /*add_bos_eos_by_post_processor=*/false);
  if (!ids.ok()) return ids.status();
  return *ids == tokens->ids;
}

}  // namespace qlora::engine
