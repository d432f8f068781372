#include "engine/io/model_files.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/strip.h"
#include "engine/input_error.h"

namespace qlora::engine {
namespace {

constexpr size_t kPieceBytes = 1 << 20;
constexpr char kGenerationFile[] = "generation_config.json";
constexpr const char* kTokenizerFiles[] = {"tokenizer.json",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "added_tokens.json",
                                           "tokenizer.model",
                                           "chat_template.jinja",
                                           "vocab.json",
                                           "merges.txt"};

absl::Status CopyFile(Env* env, const std::string& folder, const char* name,
                      const FileMaker& make) {
  const std::string from = JoinPath(folder, name);
  if (!env->Exists(from)) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<ReadableFile>> source = env->NewReadableFile(from);
  if (!source.ok()) return AsInputError(source.status());
  absl::StatusOr<std::unique_ptr<WritableFile>> file = make(name);
  if (!file.ok()) return file.status();
  // In pieces: a tokenizer is tens of MiB, which no plan has.
  std::string piece(kPieceBytes, '\0');
  for (size_t count = kPieceBytes; count == kPieceBytes;) {
    const absl::StatusOr<int64_t> read = (*source)->Read(absl::MakeSpan(piece));
    if (!read.ok()) return AsInputError(read.status());
    count = size_t(*read);
    if (absl::Status s = (*file)->Append(absl::string_view(piece.data(), count)); !s.ok()) return s;
  }
  return (*file)->Close();
}

}  // namespace

absl::Status CopyTokenizerFiles(Env* env, const std::string& folder, const FileMaker& make) {
  for (const char* name : kTokenizerFiles) {
    if (absl::Status s = CopyFile(env, folder, name, make); !s.ok()) return s;
  }
  return absl::OkStatus();
}

std::vector<int64_t> TokenizerFileSizes(Env* env, const std::string& folder) {
  std::vector<int64_t> sizes;
  for (const char* name : kTokenizerFiles) {
    const absl::StatusOr<int64_t> size = env->FileSize(JoinPath(folder, name));
    if (size.ok()) sizes.push_back(*size);
  }
  return sizes;
}

absl::Status CopyModelFiles(Env* env, const std::string& folder, const FileMaker& make) {
  if (absl::Status s = CopyFile(env, folder, kGenerationFile, make); !s.ok()) return s;
  return CopyTokenizerFiles(env, folder, make);
}

bool IsModelFile(absl::string_view name) {
  for (const absl::string_view known :
       {kConfigFile, kGenerationFile, kModelFile, kModelIndexFile}) {
    if (name == known) return true;
  }
  if (std::find(std::begin(kTokenizerFiles), std::end(kTokenizerFiles), name) !=
      std::end(kTokenizerFiles)) {
    return true;
  }
  // model-00001-of-00002.safetensors
  return absl::ConsumePrefix(&name, "model-") && absl::ConsumeSuffix(&name, ".safetensors") &&
         name.find("-of-") != name.npos && name.find_first_not_of("0123456789-of") == name.npos;
}

absl::Status WriteTextFile(const FileMaker& make, const std::string& name, absl::string_view text) {
  absl::StatusOr<std::unique_ptr<WritableFile>> file = make(name);
  if (!file.ok()) return file.status();
  if (absl::Status s = (*file)->Append(text); !s.ok()) return s;
  return (*file)->Close();
}

}  // namespace qlora::engine
