// What tokenizer_config.json says about special tokens.
#ifndef QLORA_ENGINE_TEXT_TOKENIZER_CONFIG_H_
#define QLORA_ENGINE_TEXT_TOKENIZER_CONFIG_H_

#include <string>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qlora::engine {

struct TokenizerConfig {
  std::string bos, eos, pad;                 // contents of the tokens; empty: none
  absl::flat_hash_set<std::string> special;  // contents of all tokens that it names as special
};

// `json` may be empty. DataLoss for broken JSON; fields of another form than expected are an error
// where they name BOS, EOS or padding, and passed over elsewhere.
absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(absl::string_view json);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_TOKENIZER_CONFIG_H_
