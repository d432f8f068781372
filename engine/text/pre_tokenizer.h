// `pre_tokenizer` of a tokenizer.json: cuts text into the words that are encoded one by one.
//
// Supported: Sequence, Split (String or Regex; Isolated, Removed, MergedWithPrevious,
// MergedWithNext, Contiguous; invert), ByteLevel, Digits, Metaspace.
#ifndef QLORA_ENGINE_TEXT_PRE_TOKENIZER_H_
#define QLORA_ENGINE_TEXT_PRE_TOKENIZER_H_

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/text/split_pattern.h"

namespace qlora::engine {

// Words of a text. Some steps rewrite the text, so the words refer to `text()`, not to the
// original.
class Words {
 public:
  // Borrows `text`. `at_start`: it begins where the whole input begins.
  Words(absl::string_view text, bool at_start);
  Words(const Words&) = delete;
  Words& operator=(const Words&) = delete;

  absl::string_view text() const { return text_; }
  size_t size() const { return ranges_.size(); }
  absl::string_view operator[](size_t i) const {
    return text_.substr(ranges_[i].begin, ranges_[i].end - ranges_[i].begin);
  }

 private:
  friend class PreTokenizer;

  absl::string_view text_;
  std::string storage_;  // where text_ lies once it was rewritten
  bool at_start_;
  std::vector<TextRange> ranges_;
};

class PreTokenizer {
 public:
  // From the field, which may be null. DataLoss naming `path` and the part that is not supported.
  static absl::StatusOr<PreTokenizer> Make(const nlohmann::json& field, const std::string& path);

  // Cuts the words further. Thread-safe. With ends_in_byte_level() the words are left as they are
  // before their bytes are spelled in the byte-level alphabet: Bpe::EncodeBytes takes them so.
  absl::Status Apply(Words& words) const;
  bool ends_in_byte_level() const;

 private:
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class PrependScheme { kAlways, kFirst, kNever };
  struct Step {
    enum class Kind { kSplit, kDigits, kSpellBytes, kPrefixSpace, kMetaspace } kind;
    std::shared_ptr<const SplitPattern> pattern = nullptr;  // kSplit
    Behavior behavior = Behavior::kIsolated;                // kSplit, kDigits
    bool invert = false;                                    // kSplit
    std::string replacement = "";                           // kMetaspace
    PrependScheme scheme = PrependScheme::kNever;
  };

  absl::Status Add(const nlohmann::json& part, const std::string& path);
  absl::Status AddSplit(const nlohmann::json& part, const std::string& path);
  absl::Status AddByteLevel(const nlohmann::json& part, const std::string& path);
  absl::Status AddMetaspace(const nlohmann::json& part, const std::string& path);
  static absl::Status Split(const Step& step, Words& words);
  // Replaces every word by `rewrite(index, word)` and the text by their concatenation.
  template <typename Rewrite>
  static void RewriteWords(Words& words, Rewrite rewrite);

  std::vector<Step> steps_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_PRE_TOKENIZER_H_
