// From a record to token ids and the mask of trained tokens.
#ifndef QLORA_ENGINE_DATA_ENCODE_RECORD_H_
#define QLORA_ENGINE_DATA_ENCODE_RECORD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/data/record.h"
#include "engine/text/chat_format.h"
#include "engine/text/tokenizer.h"
#include "proto/job.pb.h"

namespace qlora::engine {

// Encodes the records of one file. May be called from any number of threads at once.
class RecordEncoder {
 public:
  // `tokenizer` (may be null for PRETOKENIZED) and `data` (defaults filled in) must outlive it;
  // `format` is not AUTO. DataLoss without a tokenizer for other formats, or if
  // samples shall end with an end-of-sequence token and the tokenizer names none; InvalidArgument
  // if it lacks the control tokens of the chat format, or of all of them where data.chat_format is
  // AUTO.
  static absl::StatusOr<RecordEncoder> Create(const Tokenizer* tokenizer, const proto::Data& data,
                                              proto::DataFormat::Value format);

  // Ids and mask, not cut to any length. What a user wrote never becomes a control token.
  //   text               BOS as the tokenizer's template says, text, EOS; all trained
  //   prompt/completion  BOS, prompt | completion, EOS; trained behind the bar
  //   chat               as EncodeChat
  // The prompt ends where the last of these begins, whatever else train_on_prompt trains; of
  // pretokenized ids by their labels.
  // EOS is there exactly once. Prompt and completion are tokenized apart, or as one string with
  // whole_string_tokenization: the completion then begins where the ids leave the prompt's own.
  absl::StatusOr<ChatTokens> Encode(const Record& record) const;

  const ChatFormat* chat_format() const { return chat_format_; }  // null unless MESSAGES

 private:
  RecordEncoder(const Tokenizer* tokenizer, const proto::Data& data)
      : tokenizer_(tokenizer), data_(&data) {}

  absl::Status ResolveChatFormat();
  absl::StatusOr<std::vector<int32_t>> EncodeOpening(absl::string_view text) const;
  absl::StatusOr<ChatTokens> EncodePair(const Record& record) const;
  absl::StatusOr<ChatTokens> EncodeTurns(const Record& record) const;
  void AppendEos(std::vector<int32_t>& ids) const;

  const Tokenizer* tokenizer_;
  const proto::Data* data_;
  const ChatFormat* chat_format_ = nullptr;
  std::vector<int32_t>
      separator_ids_;  // of chat_format_, where the newline after a turn is trained
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_DATA_ENCODE_RECORD_H_
