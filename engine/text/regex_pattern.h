// Any other regular expression of a tokenizer.json, through PCRE2.
//
// The file's expressions are written for Oniguruma (Ruby syntax). What means the same in both is
// taken; \s and \S are rewritten, because PCRE2 counts U+180E as white space; what differs (\w, \b,
// \h, \R, \X, [:class:], nested classes, &&, inline flags other than i, ...) is refused.
// PCRE2 10.42 knows Unicode 14: characters that are newer count as unassigned here.
#ifndef QLORA_ENGINE_TEXT_REGEX_PATTERN_H_
#define QLORA_ENGINE_TEXT_REGEX_PATTERN_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/text/split_pattern.h"

namespace qlora::engine {

// The expression in PCRE2's syntax; DataLoss, naming the construct, where it means something
// else there.
absl::StatusOr<std::string> RegexForPcre(absl::string_view regex);

// DataLoss as above, or with the offset where PCRE2 cannot read it.
absl::StatusOr<std::unique_ptr<SplitPattern>> MakePcrePattern(absl::string_view regex);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_TEXT_REGEX_PATTERN_H_
