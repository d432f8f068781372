#include "engine/text/split_pattern.h"

#include <utility>

#include "engine/text/regex_pattern.h"
#include "engine/text/word_pattern.h"

namespace qlora::engine {
namespace {

class LiteralPattern : public SplitPattern {
 public:
  explicit LiteralPattern(absl::string_view literal) : literal_(literal) {}

  absl::Status FindMatches(absl::string_view text, std::vector<TextRange>& matches) const override {
    if (literal_.empty()) return absl::OkStatus();
    for (size_t at = text.find(literal_); at != absl::string_view::npos;
         at = text.find(literal_, at + literal_.size())) {
      matches.push_back({at, at + literal_.size()});
    }
    return absl::OkStatus();
  }

 private:
  const std::string literal_;
};

}  // namespace

std::unique_ptr<SplitPattern> MakeLiteralPattern(absl::string_view literal) {
  return std::make_unique<LiteralPattern>(literal);
}

absl::StatusOr<std::unique_ptr<SplitPattern>> MakeRegexPattern(absl::string_view regex) {
  if (std::unique_ptr<SplitPattern> known = MakeWordPattern(regex)) return known;
  return MakePcrePattern(regex);
}

}  // namespace qlora::engine
