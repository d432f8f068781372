#include "engine/text/pre_tokenizer.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/text/byte_level.h"
#include "engine/text/normalizer.h"
#include "engine/text/tokenizer_file.h"
#include "engine/text/unicode.h"
#include "engine/text/utf8.h"
#include "engine/text/word_pattern.h"

namespace qlora::engine {
namespace {

void FindDigits(absl::string_view text, std::vector<TextRange>& matches) {
  const UnicodeTable& table = UnicodeTable::Get();
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = Utf8At(text, at);
    if (table.Classes(c.value) & kNumber) matches.push_back({at, at + c.size});
    at += c.size;
  }
}

// A stretch of text, all of which is covered by matches and what lies between.
struct Stretch {
  TextRange range;
  bool is_match;
};

// Appends the stretches of `word`, shifted to where it lies in its text.
void AppendStretches(const std::vector<TextRange>& matches, TextRange word, bool invert,
                     std::vector<Stretch>& out) {
  size_t at = word.begin;
  for (const TextRange& match : matches) {
    if (word.begin + match.begin != at) out.push_back({{at, word.begin + match.begin}, invert});
    out.push_back({{word.begin + match.begin, word.begin + match.end}, !invert});
    at = word.begin + match.end;
  }
  if (at != word.end) out.push_back({{at, word.end}, invert});
}

}  // namespace

Words::Words(absl::string_view text, bool at_start) : text_(text), at_start_(at_start) {
  if (!text.empty()) ranges_.push_back({0, text.size()});
}

absl::StatusOr<PreTokenizer> PreTokenizer::Make(const nlohmann::json& field,
                                                const std::string& path) {
  PreTokenizer pre_tokenizer;
  if (field.is_null()) return pre_tokenizer;
  if (absl::Status status = pre_tokenizer.Add(field, path); !status.ok()) return status;
  return pre_tokenizer;
}

bool PreTokenizer::ends_in_byte_level() const {
  return !steps_.empty() && steps_.back().kind == Step::Kind::kSpellBytes;
}

absl::Status PreTokenizer::Add(const nlohmann::json& part, const std::string& path) {
  const absl::StatusOr<std::string> type = PartType(part, path);
  if (!type.ok()) return type.status();
  const FieldReader fields(part, path);
  if (*type == "Sequence") {
    const auto parts = fields.Array("pretokenizers");
    if (!parts.ok()) return parts.status();
    for (size_t i = 0; i < (*parts)->size(); ++i) {
      absl::Status status = Add((**parts)[i], absl::StrCat(path, ".pretokenizers[", i, "]"));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  if (*type == "Split") return AddSplit(part, path);
  if (*type == "ByteLevel") return AddByteLevel(part, path);
  if (*type == "Metaspace") return AddMetaspace(part, path);
  if (*type == "Digits") {
    const absl::StatusOr<bool> individual = fields.Bool("individual_digits", false);
    if (!individual.ok()) return individual.status();
    steps_.push_back({.kind = Step::Kind::kDigits,
                      .behavior = *individual ? Behavior::kIsolated : Behavior::kContiguous});
    return absl::OkStatus();
  }
  return NotSupported(path, absl::StrCat("pre-tokenizer \"", *type, "\""));
}

absl::Status PreTokenizer::AddSplit(const nlohmann::json& part, const std::string& path) {
  const FieldReader fields(part, path);
  absl::StatusOr<std::unique_ptr<SplitPattern>> pattern = PatternFromJson(part, path);
  if (!pattern.ok()) return pattern.status();
  const absl::StatusOr<std::string> name = fields.String("behavior", "");
  if (!name.ok()) return name.status();
  const absl::StatusOr<bool> invert = fields.Bool("invert", false);
  if (!invert.ok()) return invert.status();
  constexpr std::pair<absl::string_view, Behavior> kBehaviors[] = {
      {"Isolated", Behavior::kIsolated},
      {"Removed", Behavior::kRemoved},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous},
  };
  for (const auto& [known, behavior] : kBehaviors) {
    if (*name != known) continue;
    steps_.push_back({.kind = Step::Kind::kSplit,
                      .pattern = *std::move(pattern),
                      .behavior = behavior,
                      .invert = *invert});
    return absl::OkStatus();
  }
  return NotSupported(fields.PathOf("behavior"), absl::StrCat("\"", *name, "\""));
}

absl::Status PreTokenizer::AddByteLevel(const nlohmann::json& part, const std::string& path) {
  const FieldReader fields(part, path);
  const absl::StatusOr<bool> prefix = fields.Bool("add_prefix_space", true);
  if (!prefix.ok()) return prefix.status();
  const absl::StatusOr<bool> use_regex = fields.Bool("use_regex", true);
  if (!use_regex.ok()) return use_regex.status();
  if (*prefix) steps_.push_back({.kind = Step::Kind::kPrefixSpace});
  if (*use_regex) {
    steps_.push_back({.kind = Step::Kind::kSplit, .pattern = MakeWordPattern(kGpt2Pattern)});
  }
  steps_.push_back({.kind = Step::Kind::kSpellBytes});
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddMetaspace(const nlohmann::json& part, const std::string& path) {
  const FieldReader fields(part, path);
  const absl::StatusOr<std::string> replacement = fields.String("replacement", "▁");
  if (!replacement.ok()) return replacement.status();
  if (replacement->empty() || Utf8At(*replacement, 0).size != replacement->size()) {
    return fields.Wrong("replacement", "one character");
  }
  // Older files have add_prefix_space in place of prepend_scheme; false wins over a scheme.
  const absl::StatusOr<bool> prefix = fields.Bool("add_prefix_space", true);
  if (!prefix.ok()) return prefix.status();
  absl::StatusOr<std::string> name = fields.String("prepend_scheme", *prefix ? "always" : "never");
  if (!name.ok()) return name.status();
  PrependScheme scheme;
  if (*name == "always") {
    scheme = PrependScheme::kAlways;
  } else if (*name == "first") {
    scheme = PrependScheme::kFirst;
  } else if (*name == "never") {
    scheme = PrependScheme::kNever;
  } else {
    return NotSupported(fields.PathOf("prepend_scheme"), absl::StrCat("\"", *name, "\""));
  }
  if (!*prefix && scheme != PrependScheme::kNever) {
    return fields.Wrong("prepend_scheme", "\"never\", as add_prefix_space is false");
  }
  const absl::StatusOr<bool> split = fields.Bool("split", true);
  if (!split.ok()) return split.status();
  steps_.push_back({.kind = Step::Kind::kMetaspace, .replacement = *replacement, .scheme = scheme});
  if (*split) {
    steps_.push_back({.kind = Step::Kind::kSplit,
                      .pattern = MakeLiteralPattern(*replacement),
                      .behavior = Behavior::kMergedWithNext});
  }
  return absl::OkStatus();
}

template <typename Rewrite>
void PreTokenizer::RewriteWords(Words& words, Rewrite rewrite) {
  std::string text;
  text.reserve(words.text_.size() + words.ranges_.size());
  for (size_t i = 0; i < words.ranges_.size(); ++i) {
    const size_t begin = text.size();
    text += rewrite(i, words[i]);
    words.ranges_[i] = {begin, text.size()};
  }
  words.storage_ = std::move(text);
  words.text_ = words.storage_;
}

absl::Status PreTokenizer::Split(const Step& step, Words& words) {
  std::vector<TextRange> cut;
  std::vector<TextRange> matches;
  std::vector<Stretch> stretches;
  for (size_t w = 0; w < words.ranges_.size(); ++w) {
    matches.clear();
    if (step.kind == Step::Kind::kDigits) {
      FindDigits(words[w], matches);
    } else if (absl::Status status = step.pattern->FindMatches(words[w], matches); !status.ok()) {
      return status;
    }
    stretches.clear();
    AppendStretches(matches, words.ranges_[w], step.invert, stretches);
    const size_t first = cut.size();
    switch (step.behavior) {
      case Behavior::kIsolated:
        for (const Stretch& s : stretches) cut.push_back(s.range);
        break;
      case Behavior::kRemoved:
        for (const Stretch& s : stretches) {
          if (!s.is_match) cut.push_back(s.range);
        }
        break;
      case Behavior::kMergedWithPrevious:
        for (size_t i = 0; i < stretches.size(); ++i) {
          // A match joins what lies before it; of several in a row only the first does.
          if (i > 0 && stretches[i].is_match && !stretches[i - 1].is_match) {
            cut.back().end = stretches[i].range.end;
          } else {
            cut.push_back(stretches[i].range);
          }
        }
        break;
      case Behavior::kMergedWithNext:
        for (size_t i = 0; i < stretches.size(); ++i) {
          if (i > 0 && stretches[i - 1].is_match && !stretches[i].is_match) {
            cut.back().end = stretches[i].range.end;
          } else {
            cut.push_back(stretches[i].range);
          }
        }
        break;
      case Behavior::kContiguous:
        for (size_t i = 0; i < stretches.size(); ++i) {
          if (i > 0 && stretches[i].is_match == stretches[i - 1].is_match) {
            cut.back().end = stretches[i].range.end;
          } else {
            cut.push_back(stretches[i].range);
          }
        }
        break;
    }
    // Matches may be empty; words are not.
    size_t kept = first;
    for (size_t i = first; i < cut.size(); ++i) {
      if (cut[i].begin != cut[i].end) cut[kept++] = cut[i];
    }
    cut.resize(kept);
  }
  words.ranges_ = std::move(cut);
  return absl::OkStatus();
}

absl::Status PreTokenizer::Apply(Words& words) const {
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Step::Kind::kSplit:
      case Step::Kind::kDigits:
        if (absl::Status status = Split(step, words); !status.ok()) return status;
        break;
      case Step::Kind::kPrefixSpace:
        RewriteWords(words, [](size_t, absl::string_view word) {
          return absl::StrCat(absl::StartsWith(word, " ") ? "" : " ", word);
        });
        break;
      case Step::Kind::kMetaspace:
        RewriteWords(words, [&](size_t i, absl::string_view word) {
          std::string replaced = absl::StrReplaceAll(word, {{" ", step.replacement}});
          const bool prepend = step.scheme == PrependScheme::kAlways ||
                               (step.scheme == PrependScheme::kFirst && words.at_start_ && i == 0);
          if (prepend && !absl::StartsWith(replaced, step.replacement)) {
            replaced.insert(0, step.replacement);
          }
          return replaced;
        });
        break;
      case Step::Kind::kSpellBytes:
        if (&step == &steps_.back()) break;
        RewriteWords(words, [](size_t, absl::string_view word) { return ToByteLevel(word); });
        break;
    }
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
