#include "engine/data/encode_record.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/data/dataset.h"
#include "proto/errors.h"

namespace qlora::engine {

using proto::DataFormat;

namespace {

// What stands before the last trained ids in a row. A first id without a label is no prompt:
// nothing predicts it.
int64_t PromptByLabels(const std::vector<uint8_t>& trained) {
  const auto end = std::find(trained.rbegin(), trained.rend(), 1);
  const int64_t begin = trained.rend() - std::find(end, trained.rend(), 0);
  return begin > 1 ? begin : 0;
}

}  // namespace

absl::StatusOr<RecordEncoder> RecordEncoder::Create(const Tokenizer* tokenizer,
                                                    const proto::Data& data,
                                                    DataFormat::Value format) {
  if (tokenizer == nullptr && format != DataFormat::PRETOKENIZED) {
    return proto::BadDataError(
        absl::StrCat("found ", DataFormat::Value_Name(format),
                     " records, and the model's folder has no tokenizer.json; without one only "
                     "PRETOKENIZED records (\"input_ids\", \"labels\") can be read"));
  }
  RecordEncoder encoder(tokenizer, data);
  // A prompt/completion file may hold lists of messages; whether it does shows record by record.
  if (format == DataFormat::MESSAGES) {
    if (absl::Status status = encoder.ResolveChatFormat(); !status.ok()) return status;
  } else if (format == DataFormat::PROMPT_COMPLETION) {
    encoder.ResolveChatFormat().IgnoreError();
  }
  const bool ends_with_eos = format == DataFormat::TEXT || format == DataFormat::ALPACA ||
                             format == DataFormat::PROMPT_COMPLETION;
  if (ends_with_eos && data.append_eos() && !tokenizer->eos_id().has_value()) {
    return proto::BadDataError(
        "tokenizer_config.json names no eos_token, so no sample can end with it; name one, or set "
        "data.append_eos: false");
  }
  return encoder;
}

absl::Status RecordEncoder::ResolveChatFormat() {
  absl::StatusOr<const ChatFormat*> format = ChatFormatOf(*data_, *tokenizer_);
  if (!format.ok()) return format.status();
  chat_format_ = *format;
  if (!data_->train_newline_after_turn()) return absl::OkStatus();
  auto ids = tokenizer_->Encode(chat_format_->separator, SpecialTokens::kParse, false);
  if (!ids.ok()) return ids.status();
  separator_ids_ = *std::move(ids);
  return absl::OkStatus();
}

// The tokenizer's template may close with EOS, which belongs behind the completion instead.
absl::StatusOr<std::vector<int32_t>> RecordEncoder::EncodeOpening(absl::string_view text) const {
  auto ids =
      tokenizer_->Encode(text, SpecialTokens::kPlain, /*add_bos_eos_by_post_processor=*/true);
  if (!ids.ok()) return ids.status();
  const auto eos = tokenizer_->eos_id();
  // Where BOS and EOS are one token, a single one is the opening.
  const bool is_bos = ids->size() == 1 && tokenizer_->bos_id() == eos;
  if (eos.has_value() && !ids->empty() && ids->back() == *eos && !is_bos) ids->pop_back();
  return ids;
}

void RecordEncoder::AppendEos(std::vector<int32_t>& ids) const {
  if (data_->append_eos()) ids.push_back(*tokenizer_->eos_id());
}

absl::StatusOr<ChatTokens> RecordEncoder::EncodePair(const Record& record) const {
  auto prompt = EncodeOpening(record.prompt);
  if (!prompt.ok()) return prompt.status();
  ChatTokens tokens;
  size_t start = prompt->size();
  if (data_->whole_string_tokenization()) {
    auto whole = EncodeOpening(record.prompt + record.completion);
    if (!whole.ok()) return whole.status();
    tokens.ids = *std::move(whole);
    const size_t shorter = std::min(prompt->size(), tokens.ids.size());
    start = std::mismatch(prompt->begin(), prompt->begin() + shorter, tokens.ids.begin()).first -
            prompt->begin();
  } else {
    auto completion = tokenizer_->Encode(record.completion, SpecialTokens::kPlain, false);
    if (!completion.ok()) return completion.status();
    tokens.ids = *std::move(prompt);
    tokens.ids.insert(tokens.ids.end(), completion->begin(), completion->end());
  }
  AppendEos(tokens.ids);
  tokens.prompt = int64_t(start);
  tokens.trained.assign(tokens.ids.size(), 1);
  if (!data_->train_on_prompt()) std::fill_n(tokens.trained.begin(), start, 0);
  return tokens;
}

absl::StatusOr<ChatTokens> RecordEncoder::EncodeTurns(const Record& record) const {
  if (chat_format_ == nullptr) {
    return absl::InvalidArgumentError(
        "found messages, and the tokenizer has the control tokens of no chat format; allowed: "
        "llama3, chatml");
  }
  auto tokens = EncodeChat(*chat_format_, *tokenizer_, record.messages, ChatEnding::kComplete);
  if (!tokens.ok()) return tokens.status();
  if (data_->train_on_prompt()) std::fill(tokens->trained.begin(), tokens->trained.end(), 1);
  const size_t n = separator_ids_.size();
  for (size_t t = 0; n > 0 && t + n < tokens->ids.size(); ++t) {
    const bool turn_ends = tokens->trained[t] && !tokens->trained[t + 1];
    if (turn_ends &&
        std::equal(separator_ids_.begin(), separator_ids_.end(), tokens->ids.begin() + t + 1)) {
      std::fill_n(tokens->trained.begin() + t + 1, n, 1);
    }
  }
  return tokens;
}

absl::StatusOr<ChatTokens> RecordEncoder::Encode(const Record& record) const {
  switch (record.kind) {
    case Record::Kind::kPretokenized:
      return ChatTokens{record.ids, record.trained, PromptByLabels(record.trained)};
    case Record::Kind::kChat:
      return EncodeTurns(record);
    case Record::Kind::kPromptCompletion:
      return EncodePair(record);
    case Record::Kind::kText:
      break;
  }
  auto ids = EncodeOpening(record.text);
  if (!ids.ok()) return ids.status();
  ChatTokens tokens;
  tokens.ids = *std::move(ids);
  AppendEos(tokens.ids);
  tokens.trained.assign(tokens.ids.size(), 1);
  return tokens;
}

}  // namespace qlora::engine
