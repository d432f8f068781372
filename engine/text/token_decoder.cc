#include "engine/text/token_decoder.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "engine/text/byte_level.h"
#include "engine/text/normalizer.h"
#include "engine/text/tokenizer_file.h"
#include "engine/text/utf8.h"

namespace qlora::engine {
namespace {

constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The byte that a token <0xHH> stands for, -1 for another token.
int ByteOf(absl::string_view token) {
  if (token.size() != 6 || !absl::StartsWith(token, "<0x") || token[5] != '>') return -1;
  const int high = HexDigit(token[3]);
  const int low = HexDigit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::vector<std::string> FallBackFromBytes(const std::vector<std::string>& tokens) {
  std::vector<std::string> out;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (Utf8ErrorOffset(bytes) == bytes.size()) {
      out.push_back(bytes);
    } else {
      out.insert(out.end(), bytes.size(), std::string(kReplacementCharacter));
    }
    bytes.clear();
  };
  for (const std::string& token : tokens) {
    const int byte = ByteOf(token);
    if (byte >= 0) {
      bytes += static_cast<char>(byte);
    } else {
      flush();
      out.push_back(token);
    }
  }
  flush();
  return out;
}

std::string FromByteLevelTokens(const std::vector<std::string>& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) {
    // A token with a character outside the alphabet (an added one) stands for itself.
    bytes += FromByteLevel(token).value_or(token);
  }
  std::string text;
  AppendLossyUtf8(bytes, text);
  return text;
}

std::string Stripped(absl::string_view token, absl::string_view what, size_t start, size_t stop) {
  for (size_t i = 0; i < start && absl::StartsWith(token, what); ++i) {
    token.remove_prefix(what.size());
  }
  for (size_t i = 0; i < stop && absl::EndsWith(token, what); ++i) {
    token.remove_suffix(what.size());
  }
  return std::string(token);
}

}  // namespace

absl::StatusOr<TokenDecoder> TokenDecoder::Make(const nlohmann::json& field,
                                                const std::string& path) {
  TokenDecoder decoder;
  if (field.is_null()) return decoder;
  decoder.has_decoder_ = true;
  if (absl::Status status = decoder.Add(field, path); !status.ok()) return status;
  return decoder;
}

absl::Status TokenDecoder::Add(const nlohmann::json& part, const std::string& path) {
  const absl::StatusOr<std::string> type = PartType(part, path);
  if (!type.ok()) return type.status();
  const FieldReader fields(part, path);
  if (*type == "Sequence") {
    const auto parts = fields.Array("decoders");
    if (!parts.ok()) return parts.status();
    for (size_t i = 0; i < (*parts)->size(); ++i) {
      absl::Status status = Add((**parts)[i], absl::StrCat(path, ".decoders[", i, "]"));
      if (!status.ok()) return status;
    }
  } else if (*type == "ByteLevel") {
    steps_.push_back({.kind = Step::Kind::kByteLevel});
  } else if (*type == "ByteFallback") {
    steps_.push_back({.kind = Step::Kind::kByteFallback});
  } else if (*type == "Fuse") {
    steps_.push_back({.kind = Step::Kind::kFuse});
  } else if (*type == "Strip") {
    const absl::StatusOr<std::string> content = fields.String("content", "");
    if (!content.ok()) return content.status();
    const absl::StatusOr<int64_t> start = fields.Int("start", 0);
    if (!start.ok()) return start.status();
    const absl::StatusOr<int64_t> stop = fields.Int("stop", 0);
    if (!stop.ok()) return stop.status();
    if (content->empty() || *start < 0 || *stop < 0) {
      return fields.Wrong("content", "one character, with counts that are not negative");
    }
    steps_.push_back({.kind = Step::Kind::kStrip,
                      .content = *content,
                      .start = static_cast<size_t>(*start),
                      .stop = static_cast<size_t>(*stop)});
  } else if (*type == "Replace") {
    const absl::StatusOr<std::string> content = fields.String("content", "");
    if (!content.ok()) return content.status();
    absl::StatusOr<std::unique_ptr<SplitPattern>> pattern = PatternFromJson(part, path);
    if (!pattern.ok()) return pattern.status();
    steps_.push_back(
        {.kind = Step::Kind::kReplace, .content = *content, .pattern = *std::move(pattern)});
  } else if (*type == "Metaspace") {
    const absl::StatusOr<std::string> replacement = fields.String("replacement", "▁");
    if (!replacement.ok()) return replacement.status();
    const absl::StatusOr<bool> prefix = fields.Bool("add_prefix_space", true);
    if (!prefix.ok()) return prefix.status();
    const auto scheme = fields.String("prepend_scheme", *prefix ? "always" : "never");
    if (!scheme.ok()) return scheme.status();
    if (replacement->empty()) return fields.Wrong("replacement", "one character");
    steps_.push_back({.kind = Step::Kind::kMetaspace,
                      .content = *replacement,
                      .drop_first = *scheme != "never"});
  } else {
    return NotSupported(path, absl::StrCat("decoder \"", *type, "\""));
  }
  return absl::OkStatus();
}

void TokenDecoder::ApplyStep(const Step& step, std::vector<std::string>& tokens) {
  switch (step.kind) {
    case Step::Kind::kByteLevel:
      tokens = {FromByteLevelTokens(tokens)};
      break;
    case Step::Kind::kByteFallback:
      tokens = FallBackFromBytes(tokens);
      break;
    case Step::Kind::kFuse:
      tokens = {absl::StrJoin(tokens, "")};
      break;
    case Step::Kind::kStrip:
      for (std::string& token : tokens) {
        token = Stripped(token, step.content, step.start, step.stop);
      }
      break;
    case Step::Kind::kReplace:
      for (std::string& token : tokens) {
        // A pattern that exceeds its limits leaves the token as it is: decoding serves the eye
        // only.
        absl::StatusOr<std::string> replaced = ReplaceMatches(*step.pattern, step.content, token);
        if (replaced.ok()) token = *std::move(replaced);
      }
      break;
    case Step::Kind::kMetaspace:
      for (size_t i = 0; i < tokens.size(); ++i) {
        const char* const space = i == 0 && step.drop_first ? "" : " ";
        tokens[i] = absl::StrReplaceAll(tokens[i], {{step.content, space}});
      }
      break;
  }
}

std::string TokenDecoder::Decode(std::vector<std::string> tokens) const {
  if (!has_decoder_) return absl::StrJoin(tokens, " ");
  for (const Step& step : steps_) ApplyStep(step, tokens);
  return absl::StrJoin(tokens, "");
}

}  // namespace qlora::engine
