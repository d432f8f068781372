// A regular expression that must match a whole text, as Python's re.fullmatch.
#ifndef QLORA_ENGINE_LORA_FULL_MATCH_H_
#define QLORA_ENGINE_LORA_FULL_MATCH_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct pcre2_real_code_8;

namespace qlora::engine {

class FullMatch {
 public:
  // PCRE2's syntax, which module patterns share with Python's. INVALID_ARGUMENT says at which byte
  // of the pattern what is wrong.
  static absl::StatusOr<FullMatch> Compile(absl::string_view pattern);

  // RESOURCE_EXHAUSTED for a pattern that backtracks beyond a million steps on this text.
  absl::StatusOr<bool> Matches(absl::string_view text) const;

 private:
  FullMatch(std::shared_ptr<pcre2_real_code_8> code, absl::string_view pattern)
      : code_(std::move(code)), pattern_(pattern) {}

  std::shared_ptr<pcre2_real_code_8> code_;
  std::string pattern_;
};

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_LORA_FULL_MATCH_H_
