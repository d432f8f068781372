#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/data/dataset.h"

namespace qlora::engine {

absl::StatusOr<const ChatFormat*> ChatFormatOf(const proto::Data& data,
                                               const Tokenizer& tokenizer) {
  std::vector<const char*> names = {"llama3", "chatml"};
  if (data.chat_format() == proto::ChatFormat::LLAMA3) names = {"llama3"};
  if (data.chat_format() == proto::ChatFormat::CHATML) names = {"chatml"};
  absl::Status reason;
  for (const char* name : names) {
    absl::StatusOr<const ChatFormat*> format = FindChatFormat(name);
    if (!format.ok()) return format.status();
    reason = CheckChatTokenizer(**format, tokenizer);
    if (reason.ok()) return *format;
  }
  if (names.size() == 1) return reason;
  return absl::InvalidArgumentError(
      absl::StrCat("data.chat_format: found no format whose control tokens the tokenizer has; "
                   "allowed: llama3, chatml; ",
                   reason.message()));
}

}  // namespace qlora::engine
