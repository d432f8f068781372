#include "engine/text/word_pattern.h"

#include <cstdint>

#include "engine/text/unicode.h"
#include "engine/text/utf8.h"

namespace qlora::engine {
namespace {

enum class Contractions {
  kFirst,         // 's, 't, ... as the first alternative
  kFirstAnyCase,  // the same, (?i:
  kSuffix,        // (?i:'s|...)? at the end of a word
  kNone,
};

enum class Words {
  kSpace,   // " ?" before letters
  kPrefix,  // "[^\r\n\p{L}\p{N}]?" before letters
  kCased,   // the same before [upper]*[lower]+ or [upper]+[lower]*, where a word ends in its case
            // change
};

struct WordRule {
  absl::string_view regex;
  Contractions contractions;
  Words words;
  ClassMask letters;  // what words are made of, and symbols are not (besides numbers)
  int max_digits;     // 0: any number, after " ?"
  bool newlines;      // "[\r\n]*" after symbols, and "\s*[\r\n]+"
  bool slash;         // "[\r\n/]*" after symbols
};

constexpr WordRule kRules[] = {
    {kGpt2Pattern, Contractions::kFirst, Words::kSpace, kLetter, 0, false, false},
    // Llama 3, cl100k.
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
     R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     Contractions::kFirstAnyCase, Words::kPrefix, kLetter, 3, true, false},
    // Qwen 2 and 3.
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
     R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     Contractions::kFirstAnyCase, Words::kPrefix, kLetter, 1, true, false},
    // Qwen 3.5.
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|)"
     R"( ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     Contractions::kFirstAnyCase, Words::kPrefix, kLetter | kMark, 1, true, false},
    // Tekken (Mistral Nemo and later).
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|)"
     R"( ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     Contractions::kNone, Words::kCased, kLetter, 1, true, true},
    // o200k.
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|)"
     R"( ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     Contractions::kSuffix, Words::kCased, kLetter, 3, true, true},
};

constexpr ClassMask kUpper =
    MaskOf(Category::kLu) | MaskOf(Category::kLt) | kCaselessLetter | kMark;
constexpr ClassMask kLower = MaskOf(Category::kLl) | kCaselessLetter | kMark;

// Positions are byte offsets; each function gives the end of its match, or `at` where there is
// none.
class Matcher {
 public:
  Matcher(const WordRule& rule, const UnicodeTable& table, absl::string_view text)
      : rule_(rule), table_(table), text_(text) {}

  // End of the match at `at` < size. Every character belongs to some alternative, so it is never
  // empty.
  size_t Next(size_t at) const {
    size_t end = at;
    if (rule_.contractions == Contractions::kFirst ||
        rule_.contractions == Contractions::kFirstAnyCase) {
      end = Contraction(at);
    }
    if (end == at) end = rule_.words == Words::kCased ? CasedWord(at) : Word(at);
    if (end == at) end = Number(at);
    if (end == at) end = Symbols(at);
    if (end == at) end = WhiteSpace(at);
    return end;
  }

 private:
  bool Is(size_t at, ClassMask mask) const {
    return at < text_.size() && (table_.Classes(Utf8At(text_, at).value) & mask) != 0;
  }

  size_t Run(size_t at, ClassMask mask) const {
    while (at < text_.size()) {
      const CodePoint c = Utf8At(text_, at);
      if ((table_.Classes(c.value) & mask) == 0) break;
      at += c.size;
    }
    return at;
  }

  size_t AfterSpace(size_t at) const { return text_[at] == ' ' ? at + 1 : at; }

  size_t Contraction(size_t at) const {
    if (text_[at] != '\'') return at;
    const bool any_case = rule_.contractions != Contractions::kFirst;
    const auto letter = [&](size_t i) -> char {
      if (i >= text_.size()) return 0;
      const char c = text_[i];
      return any_case && c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c;
    };
    const char first = letter(at + 1);
    const char second = letter(at + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    if ((first == 'r' || first == 'v') && second == 'e') return at + 3;
    if (first == 'l' && second == 'l') return at + 3;
    // U+017F, the long s, is a case variant of s.
    if (any_case && text_.substr(at + 1, 2) == "\xC5\xBF") return at + 3;
    return at;
  }

  // End of an optional [^\r\n\p{L}\p{N}].
  size_t AfterPrefix(size_t at) const {
    const CodePoint c = Utf8At(text_, at);
    if (c.value == '\r' || c.value == '\n') return at;
    return (table_.Classes(c.value) & (kLetter | kNumber)) ? at : at + c.size;
  }

  size_t Word(size_t at) const {
    const size_t start = rule_.words == Words::kSpace ? AfterSpace(at) : AfterPrefix(at);
    const size_t end = Run(start, rule_.letters);
    if (end != start) return end;
    // Without the prefix, which may itself be a mark.
    return Run(at, rule_.letters);
  }

  // [upper]*[lower]+ at `at`: where the first run leaves nothing for the second, it gives
  // characters back up to the last one that is in both.
  size_t UpperThenLower(size_t at) const {
    const size_t upper_end = Run(at, kUpper);
    const size_t end = Run(upper_end, kLower);
    if (end != upper_end) return end;
    for (size_t last = upper_end; last > at;) {
      const size_t start = Utf8StartBefore(text_, last);
      if (Is(start, kLower)) return last;
      last = start;
    }
    return at;
  }

  size_t CasedWord(size_t at) const {
    const size_t start = AfterPrefix(at);
    size_t end = UpperThenLower(start);
    bool found = end != start;
    if (!found && start != at) {  // without the prefix, which may itself be a mark
      end = UpperThenLower(at);
      found = end != at;
    }
    if (!found) {
      // [upper]+[lower]*, where nothing lower can follow, else the first form had matched.
      end = Run(start, kUpper);
      if (end == start) return at;
    }
    if (rule_.contractions == Contractions::kSuffix && end < text_.size()) return Contraction(end);
    return end;
  }

  size_t Number(size_t at) const {
    if (rule_.max_digits == 0) {
      const size_t start = AfterSpace(at);
      const size_t end = Run(start, kNumber);
      return end == start ? at : end;
    }
    size_t end = at;
    for (int i = 0; i < rule_.max_digits && Is(end, kNumber); ++i) {
      end += Utf8At(text_, end).size;
    }
    return end;
  }

  size_t Symbols(size_t at) const {
    const size_t start = AfterSpace(at);
    const ClassMask others = kWhiteSpace | rule_.letters | kNumber;
    size_t end = start;
    while (end < text_.size()) {
      const CodePoint c = Utf8At(text_, end);
      if (table_.Classes(c.value) & others) break;
      end += c.size;
    }
    if (end == start) return at;
    if (!rule_.newlines) return end;
    while (end < text_.size() &&
           (text_[end] == '\r' || text_[end] == '\n' || (rule_.slash && text_[end] == '/'))) {
      ++end;
    }
    return end;
  }

  // \s*[\r\n]+ (up to the last line end of the run), \s+(?!\S) (all but the last character before
  // something else), \s+.
  size_t WhiteSpace(size_t at) const {
    size_t end = at;
    size_t last_start = at;
    size_t line_end = at;
    while (end < text_.size()) {
      const CodePoint c = Utf8At(text_, end);
      if ((table_.Classes(c.value) & kWhiteSpace) == 0) break;
      last_start = end;
      end += c.size;
      if (c.value == '\r' || c.value == '\n') line_end = end;
    }
    if (rule_.newlines && line_end != at) return line_end;
    if (end == text_.size() || last_start == at) return end;
    return last_start;
  }

  const WordRule& rule_;
  const UnicodeTable& table_;
  const absl::string_view text_;
};

class WordPattern : public SplitPattern {
 public:
  explicit WordPattern(const WordRule& rule) : rule_(rule) {}

  absl::Status FindMatches(absl::string_view text, std::vector<TextRange>& matches) const override {
    const Matcher matcher(rule_, UnicodeTable::Get(), text);
    for (size_t at = 0; at < text.size();) {
      const size_t end = matcher.Next(at);
      matches.push_back({at, end});
      at = end;
    }
    return absl::OkStatus();
  }

 private:
  const WordRule& rule_;
};

}  // namespace

std::unique_ptr<SplitPattern> MakeWordPattern(absl::string_view regex) {
  for (const WordRule& rule : kRules) {
    if (rule.regex == regex) return std::make_unique<WordPattern>(rule);
  }
  return nullptr;
}

}  // namespace qlora::engine
