#include "engine/text/regex_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/text/utf8.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

constexpr size_t kMaxRegexBytes = 16384;

// White_Space without and with the brackets of a class.
constexpr absl::string_view kSpaceItems =
    R"(\t-\r\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
// Its complement.
constexpr absl::string_view kNonSpaceItems =
    R"(\x00-\x08\x0e-\x1f\x21-\x84\x86-\x9f\xa1-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
    R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{d7ff}\x{e000}-\x{10ffff})";

absl::Status Refused(absl::string_view construct, size_t at, absl::string_view regex) {
  return proto::BadDataError(absl::StrCat("regular expression `", regex, "`: ", construct,
                                          " at byte ", at, " is not supported"));
}

// Escapes that mean the same in Oniguruma and PCRE2, besides escaped punctuation.
constexpr absl::string_view kSameEscapes = "dDnrtfvaexAzZ";

}  // namespace

absl::StatusOr<std::string> RegexForPcre(absl::string_view regex) {
  std::string out;
  bool in_class = false;
  size_t class_start = 0;
  for (size_t at = 0; at < regex.size(); ++at) {
    const char c = regex[at];
    const absl::string_view rest = regex.substr(at);
    if (c == '\\') {
      if (at + 1 == regex.size()) return Refused("a trailing backslash", at, regex);
      const char e = regex[++at];
      if (e == 's' || e == 'S') {
        const absl::string_view items = e == 's' ? kSpaceItems : kNonSpaceItems;
        absl::StrAppend(&out, in_class ? "" : "[", items, in_class ? "" : "]");
      } else if (e == 'p' || e == 'P') {
        const size_t close = regex.find('}', at);
        if (at + 1 >= regex.size() || regex[at + 1] != '{' || close == absl::string_view::npos) {
          return Refused("a property without {}", at, regex);
        }
        absl::StrAppend(&out, "\\", regex.substr(at, close + 1 - at));
        at = close;
      } else if (e == 'x' && !absl::StartsWith(regex.substr(at), "x{")) {
        return Refused("\\x without {} (a byte there, a code point here)", at - 1, regex);
      } else if (absl::ascii_isalnum(e) && kSameEscapes.find(e) == absl::string_view::npos) {
        return Refused(absl::StrCat("\\", regex.substr(at, 1)), at - 1, regex);
      } else {
        absl::StrAppend(&out, "\\", regex.substr(at, 1));
      }
      continue;
    }
    if (in_class) {
      if (c == '[') return Refused("a class inside a class", at, regex);
      if (absl::StartsWith(rest, "&&")) return Refused("&&", at, regex);
      if (c == ']' && at != class_start) in_class = false;
    } else if (c == '[') {
      in_class = true;
      class_start = at + 1;
      if (class_start < regex.size() && regex[class_start] == '^') {
        out += '[';
        ++at;
        ++class_start;
        out += '^';
        continue;
      }
    } else if (absl::StartsWith(rest, "(?") && !absl::StartsWith(rest, "(?:") &&
               !absl::StartsWith(rest, "(?i:") && !absl::StartsWith(rest, "(?=") &&
               !absl::StartsWith(rest, "(?!") && !absl::StartsWith(rest, "(?<=") &&
               !absl::StartsWith(rest, "(?<!") && !absl::StartsWith(rest, "(?>")) {
      return Refused(absl::StrCat("group ", rest.substr(0, 4)), at, regex);
    } else if (absl::StartsWith(rest, "(*")) {
      return Refused("(*", at, regex);
    } else if (absl::StartsWith(rest, "}+") || absl::StartsWith(rest, "}?")) {
      return Refused(rest.substr(0, 2), at, regex);
    }
    out += c;
  }
  return out;
}

namespace {

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct ContextDeleter {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

std::string PcreError(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

class PcrePattern : public SplitPattern {
 public:
  PcrePattern(absl::string_view regex, std::unique_ptr<pcre2_code, CodeDeleter> code)
      : regex_(regex), code_(std::move(code)) {}

  absl::Status FindMatches(absl::string_view text, std::vector<TextRange>& matches) const override {
    const std::unique_ptr<pcre2_match_data, MatchDeleter> data(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    if (data == nullptr) return absl::ResourceExhaustedError("no memory for a match");
    // Searches go on at the end of the last match; an empty match right there is passed over, so
    // that the next one is looked for a character further.
    size_t at = 0;
    size_t last_end = SIZE_MAX;
    while (at <= text.size()) {
      int rc = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                           PCRE2_NO_UTF_CHECK, data.get(), nullptr);
      if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
        rc = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data.get(), nullptr);
      }
      if (rc == PCRE2_ERROR_NOMATCH) break;
      if (rc < 0) {
        return absl::ResourceExhaustedError(absl::StrCat("regular expression `", regex_,
                                                         "` fails on the text at byte ", at, ": ",
                                                         PcreError(rc)));
      }
      const PCRE2_SIZE* const ends = pcre2_get_ovector_pointer(data.get());
      const TextRange match = {ends[0], ends[1]};
      if (match.begin == match.end && match.end == last_end) {
        at = match.end + (match.end < text.size() ? Utf8At(text, match.end).size : 1);
        continue;
      }
      matches.push_back(match);
      at = last_end = match.end;
    }
    return absl::OkStatus();
  }

 private:
  const std::string regex_;
  const std::unique_ptr<pcre2_code, CodeDeleter> code_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SplitPattern>> MakePcrePattern(absl::string_view regex) {
  if (regex.size() > kMaxRegexBytes) {
    return proto::BadDataError(absl::StrCat("regular expression of ", regex.size(),
                                            " bytes; the limit is ", kMaxRegexBytes));
  }
  absl::StatusOr<std::string> pattern = RegexForPcre(regex);
  if (!pattern.ok()) return pattern.status();
  const std::unique_ptr<pcre2_compile_context, ContextDeleter> context(
      pcre2_compile_context_create(nullptr));
  if (context == nullptr) return absl::ResourceExhaustedError("no memory for a pattern");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // Ruby's ^ and $ are those of lines.
  std::unique_ptr<pcre2_code, CodeDeleter> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern->data()), pattern->size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, context.get()));
  if (code == nullptr) {
    return proto::BadDataError(absl::StrCat("regular expression `", regex, "` (as `", *pattern,
                                            "`): ", PcreError(error), " at byte ", offset));
  }
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // only speed depends on it
  return std::unique_ptr<SplitPattern>(new PcrePattern(regex, std::move(code)));
}

}  // namespace qlora::engine
