#include "engine/lora/full_match.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "absl/strings/str_cat.h"

namespace qlora::engine {
namespace {

// Module paths have some 40 characters; sane patterns need some hundred steps on one.
constexpr uint32_t kMostSteps = 1'000'000;

std::string Pcre2Message(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof(buffer)) < 0)
    return absl::StrCat("error ", code);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

absl::StatusOr<FullMatch> FullMatch::Compile(absl::string_view pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  // ENDANCHORED makes the matcher backtrack for a match that ends at the end, as fullmatch does.
  const uint32_t options =
      PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   options, &error, &offset, nullptr);
  if (code == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("the regular expression \"", pattern,
                                                   "\" is not valid at byte ", offset, ": ",
                                                   Pcre2Message(error)));
  }
  return FullMatch(std::shared_ptr<pcre2_code>(code, pcre2_code_free), pattern);
}

absl::StatusOr<bool> FullMatch::Matches(absl::string_view text) const {
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code_.get(), nullptr), pcre2_match_data_free);
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  if (data == nullptr || context == nullptr) return absl::ResourceExhaustedError("out of memory");
  pcre2_set_match_limit(context.get(), kMostSteps);
  const int result = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                                 text.size(), 0, 0, data.get(), context.get());
  if (result >= 0) return true;
  if (result == PCRE2_ERROR_NOMATCH) return false;
  return absl::ResourceExhaustedError(absl::StrCat(
      "the regular expression \"", pattern_, "\" fails on \"", text, "\": ", Pcre2Message(result)));
}

}  // namespace qlora::engine
