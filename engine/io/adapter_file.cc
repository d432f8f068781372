#include "engine/io/adapter_file.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/io/atomic_file.h"
#include "engine/io/model_files.h"
#include "engine/io/safetensors_writer.h"

namespace qlora::engine {
namespace {

constexpr absl::string_view kKeyPrefix = "base_model.model.";
constexpr absl::string_view kKeyA = ".lora_A.weight";
constexpr absl::string_view kKeyB = ".lora_B.weight";
constexpr size_t kMaxListed = 10;

std::string Key(absl::string_view module, absl::string_view suffix) {
  return AdapterTensorName(absl::StrCat(module, suffix));
}

std::string FirstOf(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kMaxListed);
  std::string text = absl::StrJoin(names.begin(), names.begin() + shown, ", ");
  if (shown < names.size()) absl::StrAppend(&text, " and ", names.size() - shown, " more");
  return text;
}

// Says of a tensor that is no A or B what it belongs to.
absl::string_view Hint(absl::string_view key) {
  if (absl::EndsWith(key, "lora_magnitude_vector")) return " (DoRA)";
  if (absl::StrContains(key, "lora_embedding_")) return " (LoRA of an embedding)";
  if (absl::EndsWith(key, ".bias")) return " (a bias)";
  return "";
}

// The modules of the file itself: each with both A and B, sorted by path.
absl::StatusOr<std::vector<ExpectedModule>> ModulesOf(const SafetensorsFile& file) {
  std::map<std::string, ExpectedModule> modules;
  std::vector<std::string> unexpected;
  for (const TensorInfo& tensor : file.tensors()) {
    absl::string_view module = tensor.name;
    const bool prefixed = absl::ConsumePrefix(&module, kKeyPrefix);
    const bool is_a = prefixed && absl::ConsumeSuffix(&module, kKeyA);
    const bool is_b = prefixed && !is_a && absl::ConsumeSuffix(&module, kKeyB);
    if ((!is_a && !is_b) || module.empty() || tensor.shape.size() != 2) {
      unexpected.push_back(absl::StrCat(tensor.name, Hint(tensor.name)));
      continue;
    }
    ExpectedModule& entry = modules[std::string(module)];
    if (is_a) entry.in = tensor.shape[1];
    if (is_b) entry.out = tensor.shape[0];
  }
  if (!unexpected.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": tensors that are no LoRA matrices: ", FirstOf(unexpected)));
  }
  std::vector<ExpectedModule> list;
  for (auto& [path, module] : modules) {
    module.path = path;
    list.push_back(std::move(module));
  }
  if (list.empty())
    return absl::InvalidArgumentError(absl::StrCat(file.path(), " holds no tensor"));
  return list;
}

// Adds what is wrong with the tensor to `faults`.
void CheckShape(const TensorInfo& tensor, int64_t rows, int64_t columns,
                std::vector<std::string>* faults) {
  if (tensor.shape != std::vector<int64_t>{rows, columns}) {
    faults->push_back(absl::StrCat(tensor.name, " is ", tensor.Describe(), ", needed is [", rows,
                                   ", ", columns, "]"));
  }
  if (tensor.dtype != Dtype::kBF16 && tensor.dtype != Dtype::kF32 && tensor.dtype != Dtype::kF16) {
    faults->push_back(absl::StrCat(tensor.name, " is ", DtypeName(tensor.dtype),
                                   ", supported are BF16, F16 and F32"));
  }
}

}  // namespace

absl::Status WriteAdapter(const FileMaker& make, const AdapterTensors& adapter) {
  const int64_t r = adapter.config.r;
  if (r < 1 || adapter.modules.empty()) {
    return absl::InvalidArgumentError("an adapter needs a rank of at least 1 and a module");
  }
  std::vector<TensorData> tensors;
  for (const AdapterModule& module : adapter.modules) {
    if (module.dtype != Dtype::kBF16 && module.dtype != Dtype::kF32) {
      return absl::InvalidArgumentError(absl::StrCat("adapter of ", module.path, ": written as ",
                                                     DtypeName(module.dtype),
                                                     ", allowed are BF16 and F32"));
    }
    tensors.push_back({{Key(module.path, kKeyA), module.dtype, {r, module.in}}, module.a});
    tensors.push_back({{Key(module.path, kKeyB), module.dtype, {module.out, r}}, module.b});
  }
  auto model = make(kAdapterModelFile);
  if (!model.ok()) return model.status();
  absl::Status status = WriteSafetensors(*std::move(model), std::move(tensors));
  if (!status.ok()) return status;
  return WriteAdapterConfig(make, adapter.config);
}

absl::Status WriteAdapter(Env* env, const std::string& folder, const AdapterTensors& adapter) {
  return WriteAdapter(
      [&](const std::string& name) { return NewAtomicFile(env, JoinPath(folder, name)); }, adapter);
}

std::string AdapterTensorName(absl::string_view parameter) {
  return absl::StrCat(kKeyPrefix, parameter);
}

absl::Status WriteAdapterConfig(const FileMaker& make, const AdapterConfig& config) {
  return WriteTextFile(make, kAdapterConfigFile, AdapterConfigJson(config));
}

absl::StatusOr<LoadedAdapter> ReadAdapter(Env* env, const std::string& folder,
                                          absl::Span<const ExpectedModule> expected) {
  auto config = ReadAdapterConfig(env, folder);
  if (!config.ok()) return config.status();
  auto file = SafetensorsFile::Open(env, JoinPath(folder, kAdapterModelFile));
  if (!file.ok()) return file.status();
  std::vector<ExpectedModule> modules(expected.begin(), expected.end());
  if (modules.empty()) {
    auto found = ModulesOf(*file);
    if (!found.ok()) return found.status();
    modules = *std::move(found);
  }

  LoadedAdapter loaded{*std::move(file), {*std::move(config), {}}};
  const int64_t r = loaded.adapter.config.r;
  std::vector<std::string> missing, unexpected, faults;
  std::set<std::string> known;
  for (const ExpectedModule& module : modules) {
    const std::string key_a = Key(module.path, kKeyA);
    const std::string key_b = Key(module.path, kKeyB);
    known.insert({key_a, key_b});
    const TensorInfo* a = loaded.file.Find(key_a);
    const TensorInfo* b = loaded.file.Find(key_b);
    if (a == nullptr) missing.push_back(key_a);
    if (b == nullptr) missing.push_back(key_b);
    if (a == nullptr || b == nullptr) continue;
    CheckShape(*a, r, module.in, &faults);
    CheckShape(*b, module.out, r, &faults);
    if (a->dtype != b->dtype) {
      faults.push_back(absl::StrCat(key_a, " is ", DtypeName(a->dtype), ", but ", key_b, " is ",
                                    DtypeName(b->dtype)));
    }
    loaded.adapter.modules.push_back({module.path, module.in, module.out, a->dtype,
                                      loaded.file.bytes(*a), loaded.file.bytes(*b)});
  }
  for (const TensorInfo& tensor : loaded.file.tensors()) {
    if (!known.contains(tensor.name)) {
      unexpected.push_back(absl::StrCat(tensor.name, Hint(tensor.name)));
    }
  }
  std::vector<std::string> complaints;
  if (!missing.empty()) complaints.push_back(absl::StrCat("missing: ", FirstOf(missing)));
  if (!unexpected.empty()) complaints.push_back(absl::StrCat("unexpected: ", FirstOf(unexpected)));
  if (!faults.empty()) complaints.push_back(FirstOf(faults));
  if (!complaints.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(loaded.file.path(), ": ", absl::StrJoin(complaints, "; ")));
  }
  return loaded;
}

}  // namespace qlora::engine
