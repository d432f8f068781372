#include "engine/text/normalizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/tokenizer_file.h"
#include "engine/text/unicode_normal_form.h"
#include "proto/errors.h"

namespace qlora::engine {

absl::StatusOr<std::unique_ptr<SplitPattern>> PatternFromJson(const nlohmann::json& part,
                                                              const std::string& path) {
  const FieldReader fields(part, path);
  const nlohmann::json* const pattern = fields.Find("pattern");
  if (pattern == nullptr || !pattern->is_object() || pattern->size() != 1 ||
      !pattern->begin()->is_string()) {
    return fields.Wrong("pattern", "{\"String\": ...} or {\"Regex\": ...}");
  }
  const std::string value = pattern->begin()->get<std::string>();
  if (pattern->begin().key() == "String") return MakeLiteralPattern(value);
  if (pattern->begin().key() != "Regex") return fields.Wrong("pattern", "String or Regex");
  absl::StatusOr<std::unique_ptr<SplitPattern>> made = MakeRegexPattern(value);
  if (!made.ok()) {
    return proto::Annotate(made.status(),
                           absl::StrCat("tokenizer.json: ", fields.PathOf("pattern")));
  }
  return made;
}

absl::StatusOr<std::string> ReplaceMatches(const SplitPattern& pattern, absl::string_view content,
                                           absl::string_view text) {
  std::vector<TextRange> matches;
  if (absl::Status status = pattern.FindMatches(text, matches); !status.ok()) return status;
  std::string out;
  size_t at = 0;
  for (const TextRange& match : matches) {
    absl::StrAppend(&out, text.substr(at, match.begin - at), content);
    at = match.end;
  }
  absl::StrAppend(&out, text.substr(at));
  return out;
}

absl::StatusOr<Normalizer> Normalizer::Make(const nlohmann::json& field, const std::string& path) {
  Normalizer normalizer;
  if (field.is_null()) return normalizer;
  if (absl::Status status = normalizer.Add(field, path); !status.ok()) return status;
  return normalizer;
}

absl::Status Normalizer::Add(const nlohmann::json& part, const std::string& path) {
  const absl::StatusOr<std::string> type = PartType(part, path);
  if (!type.ok()) return type.status();
  const FieldReader fields(part, path);
  if (*type == "Sequence") {
    const auto parts = fields.Array("normalizers");
    if (!parts.ok()) return parts.status();
    for (size_t i = 0; i < (*parts)->size(); ++i) {
      absl::Status status = Add((**parts)[i], absl::StrCat(path, ".normalizers[", i, "]"));
      if (!status.ok()) return status;
    }
  } else if (*type == "NFC") {
    steps_.push_back({Step::Kind::kNfc, "", nullptr});
  } else if (*type == "NFD") {
    steps_.push_back({Step::Kind::kNfd, "", nullptr});
  } else if (*type == "Prepend") {
    absl::StatusOr<std::string> content = fields.String("prepend", "");
    if (!content.ok()) return content.status();
    steps_.push_back({Step::Kind::kPrepend, *std::move(content), nullptr});
  } else if (*type == "Replace") {
    absl::StatusOr<std::string> content = fields.String("content", "");
    if (!content.ok()) return content.status();
    absl::StatusOr<std::unique_ptr<SplitPattern>> pattern = PatternFromJson(part, path);
    if (!pattern.ok()) return pattern.status();
    steps_.push_back({Step::Kind::kReplace, *std::move(content), *std::move(pattern)});
  } else {
    return NotSupported(path, absl::StrCat("normalizer \"", *type, "\""));
  }
  return absl::OkStatus();
}

absl::Status Normalizer::Apply(std::string& text) const {
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Step::Kind::kNfc:
        text = ToNfc(text);
        break;
      case Step::Kind::kNfd:
        text = ToNfd(text);
        break;
      case Step::Kind::kPrepend:
        if (!text.empty()) text.insert(0, step.content);
        break;
      case Step::Kind::kReplace: {
        absl::StatusOr<std::string> replaced = ReplaceMatches(*step.pattern, step.content, text);
        if (!replaced.ok()) return replaced.status();
        text = *std::move(replaced);
        break;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace qlora::engine
