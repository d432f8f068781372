#include "engine/text/post_processor.h"

#include "absl/strings/str_cat.h"
#include "engine/text/tokenizer_file.h"
#include "proto/errors.h"

namespace qlora::engine {
namespace {

using nlohmann::json;

absl::Status Bad(const std::string& path, absl::string_view message) {
  return proto::BadDataError(absl::StrCat("tokenizer.json: ", path, ": ", message));
}

// Appends special_tokens[name].ids.
absl::Status AppendIds(const json& part, const std::string& path, const std::string& name,
                       std::vector<int32_t>& out) {
  const std::string where = absl::StrCat(path, ".special_tokens[\"", name, "\"].ids");
  const auto tokens = part.find("special_tokens");
  const json* ids = nullptr;
  if (tokens != part.end() && tokens->is_object()) {
    const auto token = tokens->find(name);
    if (token != tokens->end() && token->is_object() && token->contains("ids")) {
      ids = &(*token)["ids"];
    }
  }
  if (ids == nullptr || !ids->is_array()) return Bad(where, "expected an array of ids");
  for (const json& id : *ids) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(kMaxTokenId)) {
      return Bad(where, "expected ids");
    }
    out.push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

absl::StatusOr<PostProcessor> FromTemplate(const json& part, const std::string& path) {
  const auto pieces = FieldReader(part, path).Array("single");
  if (!pieces.ok()) return pieces.status();
  PostProcessor result;
  bool text_seen = false;
  for (size_t i = 0; i < (*pieces)->size(); ++i) {
    const std::string where = absl::StrCat(path, ".single[", i, "]");
    const json& piece = (**pieces)[i];
    if (!piece.is_object() || piece.size() != 1 || !piece.begin()->is_object() ||
        !piece.begin()->contains("id") || !(*piece.begin())["id"].is_string()) {
      return Bad(where, "expected {\"SpecialToken\": {\"id\": ...}} or {\"Sequence\": ...}");
    }
    const std::string id = (*piece.begin())["id"].get<std::string>();
    if (piece.begin().key() == "SpecialToken") {
      absl::Status status = AppendIds(part, path, id, text_seen ? result.after : result.before);
      if (!status.ok()) return status;
    } else if (piece.begin().key() == "Sequence" && id == "A" && !text_seen) {
      text_seen = true;
    } else {
      return NotSupported(where, absl::StrCat(piece.begin().key(), " \"", id, "\" here"));
    }
  }
  if (!text_seen) return Bad(absl::StrCat(path, ".single"), "no Sequence \"A\"");
  return result;
}

}  // namespace

absl::StatusOr<PostProcessor> PostProcessor::Make(const json& field, const std::string& path) {
  if (field.is_null()) return PostProcessor();
  const absl::StatusOr<std::string> type = PartType(field, path);
  if (!type.ok()) return type.status();
  if (*type == "ByteLevel") return PostProcessor();
  if (*type == "TemplateProcessing") return FromTemplate(field, path);
  if (*type != "Sequence")
    return NotSupported(path, absl::StrCat("post-processor \"", *type, "\""));
  const auto parts = FieldReader(field, path).Array("processors");
  if (!parts.ok()) return parts.status();
  PostProcessor all;
  for (size_t i = 0; i < (*parts)->size(); ++i) {
    absl::StatusOr<PostProcessor> one =
        Make((**parts)[i], absl::StrCat(path, ".processors[", i, "]"));
    if (!one.ok()) return one.status();
    // A later processor goes round what the earlier ones made.
    all.before.insert(all.before.begin(), one->before.begin(), one->before.end());
    all.after.insert(all.after.end(), one->after.begin(), one->after.end());
  }
  return all;
}

}  // namespace qlora::engine
