#include "engine/io/model_files.h"

#include "engine/input_error.h"

namespace qlora::engine {
namespace {

constexpr int64_t kMaxCopiedFile = int64_t{256} << 20;
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
  const absl::StatusOr<std::string> text = env->ReadFile(from, kMaxCopiedFile);
  if (!text.ok()) return AsInputError(text.status());
  return WriteTextFile(make, name, *text);
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
  if (absl::Status s = CopyFile(env, folder, "generation_config.json", make); !s.ok()) return s;
  return CopyTokenizerFiles(env, folder, make);
}

absl::Status WriteTextFile(const FileMaker& make, const std::string& name, absl::string_view text) {
  absl::StatusOr<std::unique_ptr<WritableFile>> file = make(name);
  if (!file.ok()) return file.status();
  if (absl::Status s = (*file)->Append(text); !s.ok()) return s;
  return (*file)->Close();
}

}  // namespace qlora::engine
