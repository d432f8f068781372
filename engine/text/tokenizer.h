// Text <-> token ids, as a `tokenizer.json` of Hugging Face's tokenizers describes it.
//
// Covered: BPE models (byte-level, and sentencepiece-style with byte fallback), added tokens with
// all their flags, and the normalizers, pre-tokenizers, post-processors and decoders that decoder
// language models use. A part that is not covered is refused by name when the file is read, never
// approximated. `truncation` and `padding` in the file are ignored: cutting is the business of the
// data reader.
#ifndef QLORA_ENGINE_TEXT_TOKENIZER_H_
#define QLORA_ENGINE_TEXT_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace qlora::engine {

// What text that spells a control token (`<|im_end|>`, `</s>`) becomes.
enum class SpecialTokens {
  kParse,  // the control token: for templates and other text of our own
  kPlain,  // ordinary text: for everything a user wrote
};

class Tokenizer {
 public:
  // Reads `tokenizer.json` from a model folder, and `tokenizer_config.json` (names of the BOS, EOS
  // and padding tokens, further special tokens) where there is one. Errors: NotFound without a
  // tokenizer.json; DataLoss for broken JSON, contents that contradict themselves and parts that
  // are not covered, naming the file and the field.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_folder);

  // The same from the two files' contents; `config_json` may be empty.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(absl::string_view tokenizer_json,
                                                             absl::string_view config_json);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Token ids of `text`, which must be UTF-8 (DataLoss with the byte offset otherwise).
  // With `add_bos_eos_by_post_processor` the file's template is applied (Llama-3: BOS in front;
  // Qwen: nothing). May be called from any number of threads at once.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, SpecialTokens special,
                                              bool add_bos_eos_by_post_processor) const;

  // Text of `ids`. Bytes that are not UTF-8 become U+FFFD; ids without a token are left out;
  // `skip_special` leaves out tokens marked special in tokenizer.json.
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special) const;

  // Id of the token written exactly `content` in the file (byte-level vocabularies: in their
  // alphabet, e.g. "Ġthe"), added tokens first.
  std::optional<int32_t> TokenId(absl::string_view content) const;

  // The token as the file writes it; empty for an id without a token.
  const std::string& TokenText(int32_t id) const;

  // True for a token that kPlain never gives: an added token that is marked special in either file,
  // or named in tokenizer_config.json as BOS, EOS, padding or the like, or spelled <|...|>.
  bool IsControl(int32_t id) const;

  // Largest id + 1, added tokens included: what the model's embedding must at least have.
  int32_t vocab_size() const;

  // From tokenizer_config.json; nothing where it names none, or one that the tokenizer does not
  // have.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> pad_id() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);

  std::unique_ptr<const Impl> impl_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_TOKENIZER_H_
