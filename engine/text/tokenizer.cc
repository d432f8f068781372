#include "engine/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/io/env.h"
#include "engine/io/json_file.h"
#include "engine/text/added_tokens.h"
#include "engine/text/bpe.h"
#include "engine/text/byte_level.h"
#include "engine/text/normalizer.h"
#include "engine/text/post_processor.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/token_decoder.h"
#include "engine/text/tokenizer_config.h"
#include "engine/text/tokenizer_file.h"
#include "engine/text/utf8.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

// Fields of the root that mean something to us or may be ignored; any other is refused.
constexpr absl::string_view kKnownFields[] = {"version",        "truncation", "padding",
                                              "added_tokens",   "normalizer", "pre_tokenizer",
                                              "post_processor", "decoder",    "model"};

const nlohmann::json& FieldOrNull(const nlohmann::json& object, const char* name) {
  static const auto* const null = new nlohmann::json;
  const auto it = object.find(name);
  return it == object.end() ? *null : *it;
}

bool LooksLikeControl(absl::string_view content) {
  return (absl::StartsWith(content, "<|") && absl::EndsWith(content, "|>")) ||
         (absl::StartsWith(content, "<｜") && absl::EndsWith(content, "｜>"));
}

// `model` but for vocab and merges, which move out of `file`.
absl::StatusOr<BpeSpec> ReadModel(TokenizerFile& file) {
  const nlohmann::json& model = FieldOrNull(file.root, "model");
  const FieldReader fields(model, "model");
  if (!model.is_object()) return FieldReader(file.root, "").Wrong("model", "an object");
  // Files of before 2020 carry no type; all of those are told apart by their fields.
  const absl::StatusOr<std::string> type = fields.String("type", "BPE");
  if (!type.ok()) return type.status();
  if (*type != "BPE") return NotSupported("model", absl::StrCat("model \"", *type, "\""));
  for (const char* const name : {"vocab", "merges"}) {
    if (FieldOrNull(model, name) != nlohmann::json(true)) {
      return fields.Wrong(name, name[0] == 'v' ? "an object" : "an array");
    }
  }
  for (const char* const name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const absl::StatusOr<std::string> value = fields.String(name, "");
    if (!value.ok()) return value.status();
    if (!value->empty()) return NotSupported(fields.PathOf(name), absl::StrCat("\"", *value, "\""));
  }
  if (const nlohmann::json* const dropout = fields.Find("dropout")) {
    if (!dropout->is_number()) return fields.Wrong("dropout", "a number or null");
    if (dropout->get<double>() != 0) return NotSupported("model.dropout", dropout->dump());
  }
  BpeSpec spec;
  absl::StatusOr<std::string> unk = fields.String("unk_token", "");
  if (!unk.ok()) return unk.status();
  spec.unk_token = *std::move(unk);
  for (const auto& [name, flag] :
       {std::pair("fuse_unk", &spec.fuse_unk), std::pair("byte_fallback", &spec.byte_fallback),
        std::pair("ignore_merges", &spec.ignore_merges)}) {
    const absl::StatusOr<bool> value = fields.Bool(name, false);
    if (!value.ok()) return value.status();
    *flag = *value;
  }
  spec.vocab = std::move(file.vocab);
  spec.merges = std::move(file.merges);
  return spec;
}

}  // namespace

struct Tokenizer::Impl {
  AddedTokenFinder raw_tokens;
  AddedTokenFinder normalized_tokens;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<const Bpe> bpe;
  PostProcessor post_processor;
  TokenDecoder decoder;

  // Normalized added tokens decode to their normalized form, as in the tokenizers library.
  absl::flat_hash_map<int32_t, std::string> decoded_texts;
  std::vector<std::string> texts;                           // by id
  std::vector<uint8_t> known, special, control;             // by id
  absl::flat_hash_map<absl::string_view, int32_t> by_text;  // views of `texts`
  std::optional<int32_t> bos, eos, pad;

  absl::Status FillTexts(const absl::flat_hash_map<std::string, int32_t>& vocab,
                         const std::vector<AddedToken>& added);
  absl::Status CheckPostProcessor() const;
  std::optional<int32_t> Find(absl::string_view content) const;
  // Appends the ids of a piece without added tokens. `at_start`: it begins the input.
  absl::Status EncodeOrdinary(absl::string_view text, bool at_start,
                              std::vector<int32_t>& ids) const;
  // Normalizes a piece, cuts out the normalized added tokens and encodes the rest.
  absl::Status EncodePiece(absl::string_view text, bool at_start, bool plain,
                           std::vector<int32_t>& ids) const;
};

absl::Status Tokenizer::Impl::FillTexts(const absl::flat_hash_map<std::string, int32_t>& vocab,
                                        const std::vector<AddedToken>& added) {
  int32_t largest = -1;
  for (const auto& [token, id] : vocab) largest = std::max(largest, id);
  for (const AddedToken& token : added) largest = std::max(largest, token.id);
  texts.resize(largest + 1);
  known.resize(largest + 1);
  special.resize(largest + 1);
  control.resize(largest + 1);
  const auto put = [&](const std::string& text, int32_t id) -> absl::Status {
    if (known[id] && texts[id] != text) {
      return proto::BadDataError(absl::StrCat("tokenizer.json: id ", id, " belongs to both `",
                                              texts[id], "` and `", text, "`"));
    }
    texts[id] = text;
    known[id] = 1;
    return absl::OkStatus();
  };
  for (const auto& [token, id] : vocab) {
    if (absl::Status status = put(token, id); !status.ok()) return status;
  }
  for (const AddedToken& token : added) {
    if (absl::Status status = put(token.content, token.id); !status.ok()) return status;
    special[token.id] = token.special;
    control[token.id] = token.control;
  }
  for (size_t id = 0; id < texts.size(); ++id) {
    if (known[id]) by_text.emplace(texts[id], static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::CheckPostProcessor() const {
  for (const std::vector<int32_t>* const ids : {&post_processor.before, &post_processor.after}) {
    for (const int32_t id : *ids) {
      if (static_cast<size_t>(id) >= known.size() || !known[id]) {
        return proto::BadDataError(
            absl::StrCat("tokenizer.json: post_processor: id ", id, " has no token"));
      }
    }
  }
  return absl::OkStatus();
}

std::optional<int32_t> Tokenizer::Impl::Find(absl::string_view content) const {
  const auto it = by_text.find(content);
  if (it == by_text.end()) return std::nullopt;
  return it->second;
}

absl::Status Tokenizer::Impl::EncodeOrdinary(absl::string_view text, bool at_start,
                                             std::vector<int32_t>& ids) const {
  Words words(text, at_start);
  if (absl::Status status = pre_tokenizer.Apply(words); !status.ok()) return status;
  const bool byte_level = pre_tokenizer.ends_in_byte_level();
  for (size_t i = 0; i < words.size(); ++i) {
    if (!byte_level) {
      bpe->EncodeText(words[i], ids);
    } else if (bpe->has_all_bytes()) {
      bpe->EncodeBytes(words[i], ids);
    } else {
      bpe->EncodeText(ToByteLevel(words[i]), ids);
    }
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::EncodePiece(absl::string_view text, bool at_start, bool plain,
                                          std::vector<int32_t>& ids) const {
  std::string normalized;
  if (!normalizer.empty()) {
    normalized = std::string(text);
    if (absl::Status status = normalizer.Apply(normalized); !status.ok()) return status;
    text = normalized;
  }
  if (normalized_tokens.empty()) return EncodeOrdinary(text, at_start, ids);
  std::vector<TextPiece> pieces;
  normalized_tokens.Cut(text, plain, pieces);
  for (const TextPiece& piece : pieces) {
    if (piece.token >= 0) {
      ids.push_back(piece.token);
      continue;
    }
    absl::Status status = EncodeOrdinary(text.substr(piece.begin, piece.end - piece.begin),
                                         at_start && piece.begin == 0, ids);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_folder) {
  Env* const env = Env::Default();
  const std::string path = JoinPath(model_folder, "tokenizer.json");
  if (!env->Exists(path)) {
    return proto::MissingFileError(absl::StrCat(
        path,
        " does not exist; a tokenizer in another format has to be converted to it first "
        "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"));
  }
  const absl::StatusOr<std::string> json = env->ReadFile(path, kMaxTokenizerFileBytes);
  if (!json.ok()) return json.status();
  std::string config;
  const std::string config_path = JoinPath(model_folder, "tokenizer_config.json");
  if (env->Exists(config_path)) {
    absl::StatusOr<std::string> read = env->ReadFile(config_path, kMaxJsonFile);
    if (!read.ok()) return read.status();
    config = *std::move(read);
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = FromJson(*json, config);
  if (!tokenizer.ok()) return proto::Annotate(tokenizer.status(), model_folder);
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(absl::string_view tokenizer_json,
                                                               absl::string_view config_json) {
  absl::StatusOr<TokenizerFile> file = ParseTokenizerFile(tokenizer_json);
  if (!file.ok()) return file.status();
  const absl::StatusOr<TokenizerConfig> config = ParseTokenizerConfig(config_json);
  if (!config.ok()) return config.status();
  const nlohmann::json& root = file->root;
  for (const auto& field : root.items()) {
    if (std::find(std::begin(kKnownFields), std::end(kKnownFields),
                  absl::string_view(field.key())) == std::end(kKnownFields)) {
      return NotSupported(field.key(), "this field");
    }
  }
  absl::StatusOr<BpeSpec> spec = ReadModel(*file);
  if (!spec.ok()) return spec.status();

  auto impl = std::make_unique<Impl>();
  absl::StatusOr<Normalizer> normalizer =
      Normalizer::Make(FieldOrNull(root, "normalizer"), "normalizer");
  if (!normalizer.ok()) return normalizer.status();
  impl->normalizer = *std::move(normalizer);
  absl::StatusOr<PreTokenizer> pre_tokenizer =
      PreTokenizer::Make(FieldOrNull(root, "pre_tokenizer"), "pre_tokenizer");
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();
  impl->pre_tokenizer = *std::move(pre_tokenizer);
  absl::StatusOr<PostProcessor> post_processor =
      PostProcessor::Make(FieldOrNull(root, "post_processor"), "post_processor");
  if (!post_processor.ok()) return post_processor.status();
  impl->post_processor = *std::move(post_processor);
  absl::StatusOr<TokenDecoder> decoder =
      TokenDecoder::Make(FieldOrNull(root, "decoder"), "decoder");
  if (!decoder.ok()) return decoder.status();
  impl->decoder = *std::move(decoder);

  absl::StatusOr<std::vector<AddedToken>> added = ReadAddedTokens(root, spec->vocab);
  if (!added.ok()) return added.status();
  std::vector<AddedToken> raw;
  std::vector<AddedToken> normalized;
  for (AddedToken& token : *added) {
    token.control |= config->special.contains(token.content) || LooksLikeControl(token.content);
    if (token.control) spec->control.insert(token.id);
    (token.normalized ? normalized : raw).push_back(token);
  }
  if (absl::Status status = impl->FillTexts(spec->vocab, *added); !status.ok()) return status;
  if (absl::Status status = impl->CheckPostProcessor(); !status.ok()) return status;
  absl::StatusOr<AddedTokenFinder> raw_finder = AddedTokenFinder::Make(std::move(raw), nullptr);
  if (!raw_finder.ok()) return raw_finder.status();
  impl->raw_tokens = *std::move(raw_finder);
  absl::StatusOr<AddedTokenFinder> normalized_finder =
      AddedTokenFinder::Make(std::move(normalized), &impl->normalizer);
  if (!normalized_finder.ok()) return normalized_finder.status();
  impl->normalized_tokens = *std::move(normalized_finder);
  for (const AddedToken& token : impl->normalized_tokens.tokens()) {
    std::string& text = impl->decoded_texts[token.id] = token.content;
    if (absl::Status status = impl->normalizer.Apply(text); !status.ok()) return status;
  }
  absl::StatusOr<std::unique_ptr<Bpe>> bpe = Bpe::Make(*spec);
  if (!bpe.ok()) return proto::Annotate(bpe.status(), "tokenizer.json");
  impl->bpe = *std::move(bpe);

  impl->bos = impl->Find(config->bos);
  impl->eos = impl->Find(config->eos);
  impl->pad = impl->Find(config->pad);
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text,
                                                       SpecialTokens special,
                                                       bool add_bos_eos_by_post_processor) const {
  const size_t error = Utf8ErrorOffset(text);
  if (error != text.size()) {
    return proto::BadDataError(absl::StrCat("text is not UTF-8 at byte ", error));
  }
  const bool plain = special == SpecialTokens::kPlain;
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 4);
  if (add_bos_eos_by_post_processor) ids = impl_->post_processor.before;
  std::vector<TextPiece> pieces;
  impl_->raw_tokens.Cut(text, plain, pieces);
  for (const TextPiece& piece : pieces) {
    if (piece.token >= 0) {
      ids.push_back(piece.token);
      continue;
    }
    absl::Status status = impl_->EncodePiece(text.substr(piece.begin, piece.end - piece.begin),
                                             piece.begin == 0, plain, ids);
    if (!status.ok()) return status;
  }
  if (add_bos_eos_by_post_processor) {
    ids.insert(ids.end(), impl_->post_processor.after.begin(), impl_->post_processor.after.end());
  }
  return ids;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size() || !impl_->known[id]) continue;
    if (skip_special && impl_->special[id]) continue;
    const auto it = impl_->decoded_texts.find(id);
    tokens.push_back(it == impl_->decoded_texts.end() ? impl_->texts[id] : it->second);
  }
  return impl_->decoder.Decode(std::move(tokens));
}

std::optional<int32_t> Tokenizer::TokenId(absl::string_view content) const {
  return impl_->Find(content);
}

const std::string& Tokenizer::TokenText(int32_t id) const {
  static const auto* const empty = new std::string;
  return id < 0 || id >= vocab_size() ? *empty : impl_->texts[id];
}

bool Tokenizer::IsControl(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->control[id];
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->texts.size()); }

std::optional<int32_t> Tokenizer::bos_id() const { return impl_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const { return impl_->eos; }
std::optional<int32_t> Tokenizer::pad_id() const { return impl_->pad; }

}  // namespace qlora::engine
