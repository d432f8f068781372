// From a conversation to token ids and the mask of trained tokens.
//
// A format is a row of text pieces round each turn. A conversation becomes segments: the template's
// own literals, in which control tokens are parsed, and the messages' contents, in which they never
// are (a user who writes `<|im_end|>` must not end a turn). Each segment is tokenized on its own.
// Trained are the contents of assistant messages and the end-of-turn token after them, so that the
// model learns to stop; never role headers, never the newline after the end of a turn.
#ifndef QLORA_ENGINE_TEXT_CHAT_FORMAT_H_
#define QLORA_ENGINE_TEXT_CHAT_FORMAT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/text/tokenizer.h"

namespace qlora::engine {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
  // false: an assistant message that is context only. true is the default for assistant messages
  // and an error for all others.
  std::optional<bool> train;
};

struct ChatSegment {
  std::string text;
  bool is_literal = false;  // written by the format: control tokens are parsed
  bool trained = false;
};

struct ChatTokens {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trained;  // one per id, 1 = its prediction counts in the loss
  int64_t prompt = 0;            // ids before the last trained answer; 0: there is no prompt
};

enum class ChatEnding {
  kComplete,          // the conversation as it stands: training
  kGenerationPrompt,  // followed by the header of an assistant turn: generation
};

// A row of the table in chat_format.cc.
struct ChatFormat {
  const char* name;
  const char* bos;            // literal before the first turn, or ""
  const char* header_before;  // header_before + role + header_after opens a turn
  const char* header_after;
  const char* end_of_turn;  // trained after an assistant's content
  const char* separator;    // after end_of_turn, not trained
  bool trim;                // contents lose white space at both ends
};

// "llama3" or "chatml"; a bad-job error with the known names otherwise.
absl::StatusOr<const ChatFormat*> FindChatFormat(absl::string_view name);

// Checks roles and order (system only as the first message; the rest may come in any order) and
// cuts the conversation into segments. Neighbouring literals with the same `trained` are one
// segment; empty segments are left out. DataLoss names the message by its index.
absl::StatusOr<std::vector<ChatSegment>> RenderChat(const ChatFormat& format,
                                                    absl::Span<const ChatMessage> messages,
                                                    ChatEnding ending);

// A bad-job error when `tokenizer` lacks a control token of the format: its text would be cut into
// ordinary tokens and the model would never learn to end a turn.
absl::Status CheckChatTokenizer(const ChatFormat& format, const Tokenizer& tokenizer);

// Segments to ids and mask. A generation prompt has no trained token.
absl::StatusOr<ChatTokens> EncodeChat(const ChatFormat& format, const Tokenizer& tokenizer,
                                      absl::Span<const ChatMessage> messages, ChatEnding ending);

// Whether the ids equal those of the whole rendered text tokenized in one go, as servers that
// render a template do. They can differ where a content begins or ends with white space or spells a
// control token, and with tokenizers that put a space before every piece of text (Llama-2 style).
absl::StatusOr<bool> ChatEqualsWholeText(const ChatFormat& format, const Tokenizer& tokenizer,
                                         absl::Span<const ChatMessage> messages);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_CHAT_FORMAT_H_
