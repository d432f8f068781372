#include "engine/text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/tokenizer_file.h"
#include "engine/text/unicode.h"
#include "engine/text/utf8.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

size_t SpaceStartBefore(absl::string_view text, size_t at, size_t least) {
  while (at > least) {
    const size_t start = Utf8StartBefore(text, at);
    if (start < least || !IsWhiteSpace(Utf8At(text, start).value)) break;
    at = start;
  }
  return at;
}

size_t SpaceEndAfter(absl::string_view text, size_t at) {
  while (at < text.size()) {
    const CodePoint c = Utf8At(text, at);
    if (!IsWhiteSpace(c.value)) break;
    at += c.size;
  }
  return at;
}

bool StandsAlone(absl::string_view text, size_t begin, size_t end) {
  if (begin > 0 && IsWordCharacter(Utf8At(text, Utf8StartBefore(text, begin)).value)) return false;
  return end == text.size() || !IsWordCharacter(Utf8At(text, end).value);
}

absl::StatusOr<AddedToken> ReadToken(const nlohmann::json& object, const std::string& path) {
  const FieldReader fields(object, path);
  AddedToken token;
  const absl::StatusOr<int64_t> id = fields.Int("id", -1);
  if (!id.ok()) return id.status();
  if (*id < 0 || *id > kMaxTokenId) {
    return fields.Wrong("id", absl::StrCat("an id from 0 to ", kMaxTokenId));
  }
  token.id = static_cast<int32_t>(*id);
  absl::StatusOr<std::string> content = fields.String("content", "");
  if (!content.ok()) return content.status();
  if (content->empty()) return fields.Wrong("content", "a string that is not empty");
  token.content = *std::move(content);
  for (const auto& [name, flag] :
       {std::pair("single_word", &token.single_word), std::pair("lstrip", &token.lstrip),
        std::pair("rstrip", &token.rstrip), std::pair("normalized", &token.normalized),
        std::pair("special", &token.special)}) {
    const absl::StatusOr<bool> value = fields.Bool(name, false);
    if (!value.ok()) return value.status();
    *flag = *value;
  }
  token.control = token.special;
  return token;
}

}  // namespace

absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(
    const nlohmann::json& root, const absl::flat_hash_map<std::string, int32_t>& vocab) {
  const absl::StatusOr<const nlohmann::json*> field = FieldReader(root, "").Array("added_tokens");
  if (!field.ok()) return field.status();
  std::vector<AddedToken> tokens;
  absl::flat_hash_map<std::string, int32_t> seen;
  // The library numbers a token that the vocabulary lacks itself: after the vocabulary's entries
  // (their number, not their largest id), then upward.
  int32_t next_id = static_cast<int32_t>(vocab.size());
  for (size_t i = 0; i < (*field)->size(); ++i) {
    const std::string path = absl::StrCat("added_tokens[", i, "]");
    absl::StatusOr<AddedToken> token = ReadToken((**field)[i], path);
    if (!token.ok()) return token.status();
    if (!seen.try_emplace(token->content, token->id).second) {
      return proto::BadDataError(
          absl::StrCat("tokenizer.json: ", path, ": `", token->content, "` appears twice"));
    }
    const auto in_vocab = vocab.find(token->content);
    const int32_t expected = in_vocab != vocab.end() ? in_vocab->second : next_id;
    if (token->id != expected) {
      return proto::BadDataError(absl::StrCat(
          "tokenizer.json: ", path, ".id: `", token->content, "` has id ", token->id, ", but ",
          in_vocab != vocab.end() ? "model.vocab gives it "
                                  : "its place in the numbering of the tokenizers library is ",
          expected));
    }
    next_id = std::max(next_id, token->id + 1);
    tokens.push_back(*std::move(token));
  }
  return tokens;
}

absl::StatusOr<AddedTokenFinder> AddedTokenFinder::Make(std::vector<AddedToken> tokens,
                                                        const Normalizer* normalizer) {
  AddedTokenFinder finder;
  finder.tokens_ = std::move(tokens);
  for (size_t i = 0; i < finder.tokens_.size(); ++i) {
    std::string pattern = finder.tokens_[i].content;
    if (normalizer != nullptr) {
      if (absl::Status status = normalizer->Apply(pattern); !status.ok()) return status;
    }
    if (pattern.empty()) continue;
    std::vector<size_t>& lengths = finder.lengths_[static_cast<uint8_t>(pattern[0])];
    lengths.push_back(pattern.size());
    const size_t size = pattern.size();
    finder.patterns_.try_emplace(std::move(pattern), Pattern{i, size});
  }
  for (std::vector<size_t>& lengths : finder.lengths_) {
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
    lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  }
  return finder;
}

const AddedTokenFinder::Pattern* AddedTokenFinder::LongestAt(absl::string_view text,
                                                             size_t at) const {
  for (const size_t length : lengths_[static_cast<uint8_t>(text[at])]) {
    if (length > text.size() - at) continue;
    const auto it = patterns_.find(text.substr(at, length));
    if (it != patterns_.end()) return &it->second;
  }
  return nullptr;
}

void AddedTokenFinder::Cut(absl::string_view text, bool plain,
                           std::vector<TextPiece>& pieces) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    if (lengths_[static_cast<uint8_t>(text[at])].empty()) {
      ++at;
      continue;
    }
    const Pattern* const found = LongestAt(text, at);
    if (found == nullptr) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[found->token];
    size_t begin = at;
    size_t end = at + found->size;
    at = end;
    if (plain && token.control) continue;
    if (token.single_word && !StandsAlone(text, begin, end)) continue;
    // Space that the last token took along stays with it.
    if (token.lstrip) begin = std::max(done, SpaceStartBefore(text, begin, std::min(done, begin)));
    if (token.rstrip) end = SpaceEndAfter(text, end);
    if (done < begin) pieces.push_back({done, begin, -1});
    pieces.push_back({begin, end, token.id});
    done = end;
  }
  if (done < text.size()) pieces.push_back({done, text.size(), -1});
}

}  // namespace qlora::engine
