#include "engine/lora/residual_note.h"

#include "absl/strings/str_cat.h"
#include "engine/io/json_file.h"
#include "engine/io/model_files.h"

namespace qlora::engine {
namespace {

constexpr char kNoteFile[] = "residual_init.json";
constexpr char kBase[] = "base_sha256", kQuantization[] = "quantization";

}  // namespace

absl::StatusOr<std::optional<ResidualNote>> ReadResidualNote(Env* env, const std::string& folder) {
  const std::string path = JoinPath(folder, kNoteFile);
  if (!env->Exists(path)) return std::nullopt;
  absl::StatusOr<nlohmann::json> json = ReadJsonFile(env, path);
  if (!json.ok()) return json.status();
  const auto text = [&](const char* key) {
    return json->is_object() && json->contains(key) && (*json)[key].is_string()
               ? (*json)[key].get<std::string>()
               : std::string();
  };
  ResidualNote note{.base_sha256 = text(kBase), .quantization = text(kQuantization)};
  if (note.base_sha256.empty() || note.quantization.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": needed are ", kBase, " and ", kQuantization,
        ", texts. Without them nobody knows to which 4-bit base the adapter belongs: make it "
        "again with drift.apply_residual_init"));
  }
  return note;
}

absl::Status WriteResidualNote(const FileMaker& make, const ResidualNote& note) {
  nlohmann::ordered_json json;
  json["about"] =
      "A and B started from the residual of the base's quantization: use this adapter on the base "
      "quantized in this way only, and never merge it into the 16-bit base.";
  json[kBase] = note.base_sha256;
  json[kQuantization] = note.quantization;
  return WriteTextFile(make, kNoteFile, json.dump(2) + "\n");
}

std::string ResidualWarning(const std::string& folder) {
  return absl::StrCat(folder,
                      ": this adapter started from what quantization lost; it belongs to this "
                      "4-bit base. Never merge it into the 16-bit base, nor use it on that");
}

}  // namespace qlora::engine
