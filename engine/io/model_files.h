// The files of a model folder beside its weights.
#ifndef QLORA_ENGINE_IO_MODEL_FILES_H_
#define QLORA_ENGINE_IO_MODEL_FILES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/io/adapter_file.h"
#include "engine/io/env.h"

namespace qlora::engine {

// A model's files as Transformers names them: what it is, and its weights in one file, or the index
// of several.
inline constexpr char kConfigFile[] = "config.json";
inline constexpr char kModelFile[] = "model.safetensors";
inline constexpr char kModelIndexFile[] = "model.safetensors.index.json";

// Copies what of the tokenizer `folder` holds, so that vLLM and Transformers find it beside the
// result.
absl::Status CopyTokenizerFiles(Env* env, const std::string& folder, const FileMaker& make);
// Bytes of each of these files.
std::vector<int64_t> TokenizerFileSizes(Env* env, const std::string& folder);
// Copies the same and generation_config.json: what a folder that is a model of its own needs beside
// weights and config.json.
absl::Status CopyModelFiles(Env* env, const std::string& folder, const FileMaker& make);

// Whether `name` is one of those, config.json, or a weight file as Transformers names them: all
// that a folder with a model of its own is made of.
bool IsModelFile(absl::string_view name);

// A whole small file through `make`.
absl::Status WriteTextFile(const FileMaker& make, const std::string& name, absl::string_view text);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_MODEL_FILES_H_
