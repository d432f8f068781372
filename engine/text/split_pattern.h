// Patterns that cut text into matches and what lies between them.
//
// Three kinds: a literal string; the word patterns of known model families, matched by hand-written
// code over Unicode 16 (word_pattern.h); and any other regular expression, through PCRE2
// (regex_pattern.h).
#ifndef QLORA_ENGINE_TEXT_SPLIT_PATTERN_H_
#define QLORA_ENGINE_TEXT_SPLIT_PATTERN_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qlora::engine {

// A byte range of the text that was searched.
struct TextRange {
  size_t begin;
  size_t end;
};

class SplitPattern {
 public:
  virtual ~SplitPattern() = default;

  // Appends the leftmost non-overlapping matches in `text` (well-formed UTF-8), in order, to
  // `matches`. A match may be empty. Thread-safe. Fails only where a regular expression exceeds its
  // limits.
  virtual absl::Status FindMatches(absl::string_view text,
                                   std::vector<TextRange>& matches) const = 0;
};

// Matches `literal`; never matches when it is empty.
std::unique_ptr<SplitPattern> MakeLiteralPattern(absl::string_view literal);

// A hand-written matcher where `regex` is a known word pattern, PCRE2 otherwise. DataLoss for an
// expression that cannot be taken (see regex_pattern.h).
absl::StatusOr<std::unique_ptr<SplitPattern>> MakeRegexPattern(absl::string_view regex);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_SPLIT_PATTERN_H_
