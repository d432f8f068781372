// `added_tokens` of a tokenizer.json: tokens that are cut out of the text before anything else is
// done.
//
// Tokens fall in two classes: those marked `normalized` are sought, in normalized form, in the
// normalized text; the others in the text as it is, before that.
#ifndef QLORA_ENGINE_TEXT_ADDED_TOKENS_H_
#define QLORA_ENGINE_TEXT_ADDED_TOKENS_H_

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/text/normalizer.h"

namespace qlora::engine {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space after it along
  bool normalized = false;
  bool special = false;
  bool control = false;  // never found in SpecialTokens::kPlain text; `special` at least
};

// Reads the field (an array, may be null). DataLoss where a token has another id than the
// vocabulary or the numbering of the tokenizers library gives it (that library would use its own,
// not the file's).
absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(
    const nlohmann::json& root, const absl::flat_hash_map<std::string, int32_t>& vocab);

// A stretch of text: an added token, or ordinary text (token < 0).
struct TextPiece {
  size_t begin;
  size_t end;
  int32_t token;
};

// Finds the tokens of one class.
class AddedTokenFinder {
 public:
  // `normalizer` is applied to the tokens' contents first, when not null.
  static absl::StatusOr<AddedTokenFinder> Make(std::vector<AddedToken> tokens,
                                               const Normalizer* normalizer);

  bool empty() const { return tokens_.empty(); }

  const std::vector<AddedToken>& tokens() const { return tokens_; }

  // Appends the pieces of `text`, in order. At each place the longest token counts. With `plain`,
  // control tokens are passed over: their text stays ordinary. Thread-safe.
  void Cut(absl::string_view text, bool plain, std::vector<TextPiece>& pieces) const;

 private:
  struct Pattern {
    size_t token;  // index into tokens_
    size_t size;   // bytes
  };

  // The longest pattern at `at` in `text`; null: none.
  const Pattern* LongestAt(absl::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<std::string, Pattern> patterns_;
  // Lengths of the patterns that begin with a byte, longest first.
  std::array<std::vector<size_t>, 256> lengths_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_ADDED_TOKENS_H_
