// `normalizer` of a tokenizer.json: what is done to text before it is cut into words.
//
// Supported: Sequence, NFC, NFD, Prepend, Replace (a string or a regular expression).
#ifndef QLORA_ENGINE_TEXT_NORMALIZER_H_
#define QLORA_ENGINE_TEXT_NORMALIZER_H_

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/text/split_pattern.h"

namespace qlora::engine {

class Normalizer {
 public:
  // From the field, which may be null. DataLoss naming `path` and the part that is not supported.
  static absl::StatusOr<Normalizer> Make(const nlohmann::json& field, const std::string& path);

  // True when Apply changes nothing, ever.
  bool empty() const { return steps_.empty(); }

  // Normalizes well-formed UTF-8. Thread-safe.
  absl::Status Apply(std::string& text) const;

 private:
  struct Step {
    enum class Kind { kNfc, kNfd, kPrepend, kReplace } kind;
    std::string content;
    std::shared_ptr<const SplitPattern> pattern;  // kReplace
  };

  absl::Status Add(const nlohmann::json& part, const std::string& path);

  std::vector<Step> steps_;
};

// A "pattern" field: {"String": "..."} or {"Regex": "..."}.
absl::StatusOr<std::unique_ptr<SplitPattern>> PatternFromJson(const nlohmann::json& part,
                                                              const std::string& path);

// `text` with every match of `pattern` replaced by `content`.
absl::StatusOr<std::string> ReplaceMatches(const SplitPattern& pattern, absl::string_view content,
                                           absl::string_view text);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_NORMALIZER_H_
