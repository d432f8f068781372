// A LoRA adapter as PEFT stores it: adapter_model.safetensors and adapter_config.json.
// Keys: base_model.model.<module path>.lora_A.weight [r, in] and .lora_B.weight [out, r].
#ifndef QLORA_ENGINE_IO_ADAPTER_FILE_H_
#define QLORA_ENGINE_IO_ADAPTER_FILE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/io/dtype.h"
#include "engine/io/env.h"
#include "engine/io/safetensors.h"

namespace qlora::engine {

inline constexpr char kAdapterModelFile[] = "adapter_model.safetensors";
inline constexpr char kAdapterConfigFile[] = "adapter_config.json";

struct AdapterConfig {
  std::string base_model_name_or_path;
  int64_t r = 0;
  double lora_alpha = 0;
  double lora_dropout = 0;
  bool use_rslora = false;
  // Module suffixes ("q_proj"), sorted when written. A file read may hold one pattern instead of a
  // list: then the list is empty and target_pattern is set. Of a file read these say nothing about
  // which modules it holds: its tensors do.
  std::vector<std::string> target_modules;
  std::string target_pattern;
};

// One adapted Linear. The bytes are borrowed, row-major, little-endian.
struct AdapterModule {
  std::string path;  // "model.layers.0.self_attn.q_proj"
  int64_t in = 0;
  int64_t out = 0;
  Dtype dtype = Dtype::kBF16;   // of both; BF16, F32 or (read only) F16
  absl::Span<const uint8_t> a;  // [r, in]
  absl::Span<const uint8_t> b;  // [out, r]
};

struct AdapterTensors {
  AdapterConfig config;
  std::vector<AdapterModule> modules;
};

// The text of adapter_config.json: the full common set that old and new PEFT and vLLM read, keys
// sorted, indented by 2, newline at the end.
std::string AdapterConfigJson(const AdapterConfig& config);

// Opens a file of that name for writing; Close makes it durable.
using FileMaker =
    std::function<absl::StatusOr<std::unique_ptr<WritableFile>>(const std::string& name)>;

// Writes both files through `make` (a FolderCommit's NewFile, say). INVALID_ARGUMENT for sizes that
// don't match r, in and out, a module twice, no module.
absl::Status WriteAdapter(const FileMaker& make, const AdapterTensors& adapter);
// The same into a folder that exists, each file atomically.
absl::Status WriteAdapter(Env* env, const std::string& folder, const AdapterTensors& adapter);

// The parts of that, for tensors that are not in memory as a whole. The name in the file of a
// module's A or B, "model.layers.0.self_attn.q_proj.lora_A.weight":
std::string AdapterTensorName(absl::string_view parameter);
absl::Status WriteAdapterConfig(const FileMaker& make, const AdapterConfig& config);

// The config alone. Everything this engine can't train on or reproduce is refused with the reason:
// DoRA, biases, modules_to_save, rank or alpha patterns, initialisations that changed the base,
// other PEFT types.
absl::StatusOr<AdapterConfig> ReadAdapterConfig(Env* env, const std::string& folder);

struct ExpectedModule {
  std::string path;
  int64_t in = 0;
  int64_t out = 0;
};

struct LoadedAdapter {
  SafetensorsFile file;    // keeps the bytes mapped
  AdapterTensors adapter;  // modules in the order expected
};

// Reads both files. The tensors must be exactly A and B of each expected module, with its shapes:
// missing and unexpected names are all reported in one INVALID_ARGUMENT. (PEFT itself only warns of
// the one and ignores the other.) With `expected` empty, whatever the file holds is taken, modules
// sorted by path.
absl::StatusOr<LoadedAdapter> ReadAdapter(Env* env, const std::string& folder,
                                          absl::Span<const ExpectedModule> expected);

}  // namespace qlora::engine

#endif  // QLORA_ENGINE_IO_ADAPTER_FILE_H_
